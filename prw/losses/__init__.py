"""Losses: pure functions of recorded decisions."""

from prw.losses.veteran import veteran_loss

__all__ = ["veteran_loss"]
