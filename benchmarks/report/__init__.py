"""Makes docs/benchmarks.md and its plots from the committed results; `python -m benchmarks.report`."""
