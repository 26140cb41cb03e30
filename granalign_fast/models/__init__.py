"""Encoders, language models, vision-language models, their KV caches and their manifests."""
