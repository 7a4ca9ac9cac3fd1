"""Says which words of a prompt the base cannot read, with the nearest that it can."""

from __future__ import annotations

import difflib

from recipes.cologen.errors import PromptError
from recipes.cologen.flux.base import FluxBase

SHOWN_LETTERS = 60
"""Of a prompt that is too long."""


def check_prompt_given(prompt: str) -> None:
    """Refuse an empty prompt.

    Raises:
        PromptError: Says so.
    """
    if not prompt.strip():
        raise PromptError("there is no prompt; say what is to be generated.")


def check_words(model: FluxBase, prompt: str) -> None:
    """Refuse a prompt with words that the base cannot read, or with too many.

    Raises:
        PromptError: Names each of them with the nearest words that it knows, or says how many are too many.
    """
    unknown = model.unknown_words(prompt)
    if not unknown:
        _check_length(model, prompt)
        return
    known = sorted(word for word in model.closed_vocabulary or () if word.isalpha())
    hints = []
    for word in dict.fromkeys(unknown):
        near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
        hints.append(f"{word!r}" + (f" (near: {', '.join(near)})" if near else ""))
    words = f" It knows: {', '.join(known)}." if 0 < len(known) < 200 else ""
    raise PromptError(f"the base cannot read {'; '.join(hints)}.{words}")


def _check_length(model: FluxBase, prompt: str) -> None:
    """Refuse as `model.check_length` does, but without its advice to change the base's settings."""
    if not model.too_long([prompt]):
        return
    try:
        model.check_length(prompt)
    except PromptError as error:
        counted = str(error).partition(":")[0]  # "the prompt has 45 T5 tokens (...), but at most 20 are read"
        shown = prompt if len(prompt) <= SHOWN_LETTERS else f"{prompt[: SHOWN_LETTERS - 3]}..."
        raise PromptError(f"{counted}: {shown!r}. Shorten it.") from error
