"""Readers of model folders as published: settings, tokenizers and weights, all of them checked."""
