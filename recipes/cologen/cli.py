"""What the commands share at the terminal: quiet loading, and numbers read off the command line."""

from __future__ import annotations

import argparse

from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars


def silence_loading_bars() -> None:
    """Switch off the bars that diffusers and transformers draw while a base is loaded, a second or less."""
    disable_diffusers_bars()
    disable_transformers_bars()


def positive(text: str) -> int:
    """Read a whole number from 1 up off the command line.

    Raises:
        ArgumentTypeError: Says what came.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)
