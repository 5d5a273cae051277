"""Benchmarks of the data path, run by `make bench`. No tests: nothing here passes or fails."""
