"""Measurements with their own command line: ``python -m granalign_fast.bench.commands.NAME``."""
