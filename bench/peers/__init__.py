"""What other people use for the same work."""
