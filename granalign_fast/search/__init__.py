"""Search: from a query to the ranked moments of videos."""
