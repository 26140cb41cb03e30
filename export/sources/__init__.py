"""Checkpoints and configurations in: what a model folder says about itself."""
