"""Sentence encoders in NumPy: settings and weights of each family, and what they compute."""
