"""What the handle can do to a pool, by theme; `prw.weave.Weave` joins them and adds the `with` blocks."""

from prw.handle.exchange import Exchange
from prw.handle.hold import EMPTY, Hold
from prw.handle.life import Life

__all__ = ["EMPTY", "Exchange", "Hold", "Life"]
