"""Every export compared with its source."""
