"""Decisions a second, where the time of an episode goes, and what a candidate costs: `python -m benchmarks.speed --help`."""
