"""A query to the ranked moments of videos."""
