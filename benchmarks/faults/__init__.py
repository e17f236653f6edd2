"""Faults done to real runs on purpose, and what is left of the runs: `python -m benchmarks.faults`."""
