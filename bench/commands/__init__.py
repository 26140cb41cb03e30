"""Measurements that are commands of their own: ``python -m granalign_fast.bench.commands.NAME``."""
