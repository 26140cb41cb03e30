"""Read thousands of files that were changed at random: ``python -m helpers.mutated``."""
