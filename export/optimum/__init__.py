"""Exports of other architectures by optimum, and a model class for users of transformers."""
