"""One module for each suite; its function ``run(bench)`` records its figures in the bench."""

SUITES = (
    *("kernels", "encoders", "decode", "index"),
    *(
        "search",
        "throughput",
        "scaling",
        "library",
        "generation",
        "captions",
        "rewriting",
        "shapes",
    ),
    "service",
)
"""Names of the suites, in the order in which they run."""
