"""Distillation losses against each other, at equal steps: `python -m benchmarks.losses --help`."""
