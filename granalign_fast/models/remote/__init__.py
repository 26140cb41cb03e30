"""Models that a server runs: chat completions and embeddings over HTTP."""
