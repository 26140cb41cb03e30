"""One module a suite, each with a function ``run(bench)`` that leaves its figures in the bench."""
