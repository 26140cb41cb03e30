"""Measurements of speed: ``granalign bench`` runs the `suites`, `running` gives what they need.

`kernels`, `encoders`, `generation`, `captions`, `ablation` and `tuning` are commands of their own,
``python -m granalign_fast.bench.NAME``.
"""
