"""Generating pictures with a trained run: one, a grid, a batch, or a session that many users share."""
