"""Annotation files as they are published, to our records."""
