"""Counts the prompts whose end the base does not read, and says so, now and then rather than each time."""

from __future__ import annotations

from collections.abc import Callable

from recipes.cologen.flux.base import FluxBase
from recipes.cologen.training.input.batches import Batch


class LongPrompts:
    """The cut prompts of one stage since this process began it; at 1, 10, 100 ... of them it is said.

    Args:
        model: The base; where it refuses long prompts there is nothing to count.
        say: Shows a line.
    """

    def __init__(self, model: FluxBase, say: Callable[[str], None]) -> None:
        """Start at none; see the class."""
        self._model, self._say = model, say
        self.cut, self.seen = 0, 0

    def add(self, batch: Batch) -> None:
        """Count a batch's prompts."""
        if self._model.long_prompts == "refuse":
            return
        self.seen += len(batch.prompts)
        for prompt in self._model.too_long(batch.prompts):
            self.cut += 1
            if str(self.cut).strip("0") == "1":
                self._say(
                    f"{self.cut} of {self.seen} prompts were longer than the {self._model.max_text_tokens} "
                    f"tokens that the base reads; their ends were cut off, such as that of {prompt!r:.100}. "
                    "base.max_text_tokens reads more, base.long_prompts=refuse stops at one"
                )
