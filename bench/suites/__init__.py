"""One module a suite, each with a function ``run(bench)`` that leaves its figures in the bench."""

SUITES = (
    *("kernels", "encoders", "decode", "index"),
    *("search", "throughput", "scaling", "generation", "shapes"),
)
"""In the order in which they run."""
