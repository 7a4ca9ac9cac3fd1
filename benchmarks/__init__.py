"""Benchmarks: what routed experts cost beside every peer; the contract is in README.md."""
