"""What every measurement shares: clocks, records, reports, judges, limits."""
