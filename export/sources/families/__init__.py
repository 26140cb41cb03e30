"""Settings of each family of vision-language models, read from a folder and checked."""
