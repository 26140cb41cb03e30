"""Measurements of speed: ``granalign bench`` runs the suites and writes a report.

- `harness`: clocks, races between runners, judges of outputs, records, reports and plots.
- `peers`: the same work done with other people's software, and with plain NumPy.
- `suites`: one module for each suite of ``granalign bench``.
- `commands`: measurements with a command line of their own, ``python -m``
  ``granalign_fast.bench.commands.NAME``.

pytest-benchmark is not used. CI has no timed tests, and pytest-benchmark times calls one after
another: it has no turns, peers, limits or judged answers.
"""
