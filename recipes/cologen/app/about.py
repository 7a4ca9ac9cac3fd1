"""What the page says of its run, and the picture and prompt that it offers for a first try."""

from __future__ import annotations

import html
from typing import NamedTuple

from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.record import Image
from recipes.cologen.data.scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIDE, SIZES
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.vocabulary import FILLER_WORDS, STAGE_WORDS
from recipes.cologen.data.world import World
from recipes.cologen.pipeline.pixels import MAX_PIXELS

_SHOWN = World(3, held_out=True)
_RECORD = 29
"""Its record of two objects that makes a short, plain prompt of every task."""


class FirstTry(NamedTuple):
    """A picture and a prompt that belong together, as in training but of a scene that training never saw."""

    image: Image
    """The task's source, uint8 [16, 16, 3]."""
    prompt: str


def about(settings: RunConfig) -> str:
    """What a newcomer needs to know of the run, as Markdown."""
    name = f"The run *{html.escape(settings.name)}*, on this machine."
    if settings.data.source == "world":
        return (
            f"{name} It knows **a toy world only: pictures of {SIDE}x{SIDE} pixels** (shown enlarged), one "
            "or two plain shapes on a plain background. Whatever you give is shrunk to that size, so a photo "
            "becomes a few blocks, and prompts may use only the words at the end of this page. *Try an "
            "example* in each tab fills in a picture and a prompt that work."
        )
    if settings.data.size is None:
        return (
            f"{name} Pictures are generated at the size of the one that you give, up to {MAX_PIXELS} pixels "
            "in all; ask for another under *Size*."
        )
    height, width = settings.data.size
    return (
        f"{name} Pictures are generated at {width}x{height} pixels; the middle of the one that you "
        "give is brought to that; ask for another size under *Size*."
    )


def words(settings: RunConfig) -> dict[str, tuple[str, ...]]:
    """The words that a run's base reads, by what they say; empty where it reads free text."""
    if settings.data.source != "world":
        return {}
    said = {
        "sizes": tuple(SIZES),
        "colours": tuple(COLOURS),
        "shapes": SHAPES,
        "places": PLACES,
        "backgrounds": tuple(BACKGROUNDS),
    }
    return said | {"what to do": STAGE_WORDS, "in between": (*FILLER_WORDS, "and", "on")}


def first_try(settings: RunConfig, task: str) -> FirstTry | None:
    """An example of a task; None where there is none that travels with the code."""
    if settings.data.source != "world":
        return None
    example = VIEWS[task](_SHOWN.record(_RECORD), 0)
    return FirstTry(example.source, example.prompt)
