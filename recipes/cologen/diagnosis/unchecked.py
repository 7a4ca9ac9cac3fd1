"""What a diagnosis could not look at: nobody should take its silence for a good answer."""

from __future__ import annotations

from typing import NamedTuple


class Unchecked(NamedTuple):
    """One check that was not made."""

    about: str
    """What it is about, in a word or two."""
    why: str
    """What was not looked at, and why."""
    how: str
    """How to have it checked."""
