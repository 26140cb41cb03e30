"""Measurements of speed; each module is a command, ``python -m granalign_fast.bench.NAME``."""
