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


class Task(NamedTuple):
    """What a tab says."""

    says: str
    world: tuple[str, ...]
    """Prompts of the embedded world, in words that its base knows."""
    photos: tuple[str, ...]
    """Prompts for a base that reads free text."""


TASKS = {
    "inpainting": Task(
        "Give a picture. A copy of it comes up beside it: paint over what is to be filled in (what is pure "
        "black already counts as painted). Then say what the whole picture shows, and draw.",
        ("red circle top left on gray", "blue square top left and red circle bottom right on gray"),
        ("a red car parked beside a brick wall",),
    ),
    "grounding": Task(
        "Give a picture and say what is to be found in it, and how it is to be shown.",
        ("draw a red box around the blue square", "cover the blue square with a red mask"),
        ("draw a red box around the dog on the left", "cover the cup with a blue mask"),
    ),
    "control": Task(
        "Give a control map, or a photo that one is made from, and say what the map is and what it shows.",
        (
            "canny edge to image red circle top left on gray",
            "soft edge to image blue square bottom right on navy",
            "line art to image green triangle top right on gray",
        ),
        ("canny edge to image a wooden house in the snow", "line art to image a cat on a sofa"),
    ),
    "customization": Task(
        "Give a picture of one thing and say in which scene it is to be.",
        ("the same object at the top left on navy", "the same object at the bottom right on gray"),
        ("the same object on a wooden table",),
    ),
    "editing": Task(
        "Give a picture and say what is to be changed.",
        ("make the red circle blue", "remove the red circle", "change the background to navy"),
        ("make the car blue", "remove the person on the right"),
    ),
}


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
