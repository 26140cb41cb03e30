"""Comparison of every export with its source, before the export gets its name."""
