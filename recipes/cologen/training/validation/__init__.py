"""Measuring a run on held-out examples while it trains: scores, losses, sample grids."""
