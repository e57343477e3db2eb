"""What a lookup costs, beside everything one could use instead: `python -m benchmarks --help`."""
