"""Encoders, language models and vision-language models, and the manifests of their folders."""
