"""Measurements of speed: ``granalign bench`` runs the `suites`, `running` gives what they need.

`kernels`, `encoders`, `captions`, `ablation` and `tuning` are commands of their own,
``python -m granalign_fast.bench.NAME``.

There is no pytest-benchmark beside it: CI has no timed tests, and on a quiet machine it would time
the same calls one after another, not in turns, with no peer, no limit and no judged answer.
"""
