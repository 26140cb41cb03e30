"""Shared by every measurement: clocks, records, reports, judges, limits."""
