"""Measures what TempBalance costs, beside other programs. Run it from the repository's root: `python -m benchmarks.run`."""
