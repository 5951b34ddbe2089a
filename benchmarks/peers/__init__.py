"""Pruners of torch-pruning beside our students at the same MACs: `python -m benchmarks.peers --help`."""
