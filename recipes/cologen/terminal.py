"""What a command does to the terminal first: it switches off the host libraries' own loading bars."""

from __future__ import annotations

from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars


def silence_loading_bars() -> None:
    """Switch off the bars that diffusers and transformers draw while a base is loaded, a second or less."""
    disable_diffusers_bars()
    disable_transformers_bars()
