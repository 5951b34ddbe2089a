"""Measured latency of students against their budget: `python -m benchmarks.latency --help`."""
