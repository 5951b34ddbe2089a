"""Whether quick scores of students predict their metric after distillation: `python -m benchmarks.fidelity --help`."""
