"""What TempBalance costs, and against whom; run from the repository's root: `python -m benchmarks.run`."""
