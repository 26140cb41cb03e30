"""Prompts, rewriters of queries, and captioners of frames."""
