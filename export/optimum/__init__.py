"""Exports of other architectures, and use from transformers, through optimum."""
