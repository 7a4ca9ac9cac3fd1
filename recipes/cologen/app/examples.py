"""Prompts that the page offers for each task, and a word about what the task wants."""

from __future__ import annotations

from typing import NamedTuple


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
