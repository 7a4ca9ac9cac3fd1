"""The benchmark for a machine with a GPU: `python -m benchmarks.gpu`, one command and one result file."""
