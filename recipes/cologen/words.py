"""Says which words of a prompt the base cannot read, with the nearest that it can."""

from __future__ import annotations

import difflib

from recipes.cologen.errors import PromptError
from recipes.cologen.flux.base import FluxBase


def check_words(model: FluxBase, prompt: str) -> None:
    """Refuse a prompt with words that the base cannot read.

    Raises:
        PromptError: Names each of them with the nearest words that it knows.
    """
    unknown = model.unknown_words(prompt)
    if not unknown:
        return
    known = sorted(word for word in model.closed_vocabulary or () if word.isalpha())
    hints = []
    for word in dict.fromkeys(unknown):
        near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
        hints.append(f"{word!r}" + (f" (near: {', '.join(near)})" if near else ""))
    words = f" It knows: {', '.join(known)}." if 0 < len(known) < 200 else ""
    raise PromptError(f"the base cannot read {'; '.join(hints)}.{words}")
