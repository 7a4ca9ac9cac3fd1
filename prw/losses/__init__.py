"""Losses: pure functions of recorded decisions."""

from prw.losses.load_balance import load_balance_loss
from prw.losses.router_z import router_z_loss
from prw.losses.veteran import veteran_loss

__all__ = ["load_balance_loss", "router_z_loss", "veteran_loss"]
