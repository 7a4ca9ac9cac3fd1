"""The oracle: reads a scene back from a picture, and says whether a picture is what an example asked for.

Every pixel goes to the nearest colour of the palette; every quadrant to the template (shape, size,
position, box) that explains it with the fewest wrong pixels. A quadrant that no template explains is
unreadable, and so is the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.record import Example
from recipes.cologen.data.scene import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    cell_frame,
    cell_mask,
    cell_origin,
    draw,
)

TOLERANCE = 2
"""Wrong pixels a quadrant of 64 may have and still be read; the closest two templates differ by 3."""
_NAMES = (*COLOURS, *BACKGROUNDS)
_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float32)


@dataclass(frozen=True)
class _Templates:
    """All ways to fill a quadrant: masks and boxes as float [templates, 64], with what each one shows."""

    masks: NDArray[np.float32]
    frames: NDArray[np.float32]
    shows: tuple[tuple[str, str], ...]


@cache
def _templates() -> _Templates:
    shows = tuple((shape, size) for shape in SHAPES for size in SIZES)
    masks = np.stack([cell_mask(*show).ravel() for show in shows]).astype(np.float32)
    frames = np.stack([cell_frame(size).ravel() for _, size in shows]).astype(np.float32)
    return _Templates(masks, frames, shows)


def label_map(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Nearest colour of the palette at every pixel: int [16, 16], colours first, then backgrounds."""
    distance: NDArray[np.float32] = ((image[..., None, :].astype(np.float32) - _PALETTE) ** 2).sum(-1)
    labels: NDArray[np.int64] = distance.argmin(-1)
    return labels


def _read_cell(labels: NDArray[np.int64], background: int, place: str) -> SceneObject | bool | None:
    """The object of one quadrant, None if it is empty, False if it cannot be read."""
    flat = labels.ravel()
    empty = int((flat != background).sum())
    table = _templates()
    hot = (flat[:, None] == np.arange(len(COLOURS))).astype(np.float32)
    ground = (flat == background).astype(np.float32)
    inside = table.masks @ hot
    ringed = table.frames @ hot
    colour = inside.argmax(1)
    ring = ringed.argmax(1)
    size = table.masks.sum(1)
    wrong_inside = size - inside.max(1)
    outside = 1 - table.masks
    plain = wrong_inside + (outside.sum(1) - outside @ ground)
    beyond = outside - table.frames
    framed = wrong_inside + table.frames.sum(1) - ringed.max(1) + beyond.sum(1) - beyond @ ground
    costs = np.stack([plain, framed])
    has_frame, best = np.unravel_index(costs.argmin(), costs.shape)
    if min(empty, costs.min()) > TOLERANCE:
        return False
    if empty <= costs.min():
        return None
    shape, extent = table.shows[best]
    frame = list(COLOURS)[ring[best]] if has_frame else None
    return SceneObject(shape, extent, list(COLOURS)[colour[best]], place, frame)


def read(image: NDArray[np.uint8]) -> Scene | None:
    """The scene a picture shows, or None where a quadrant or the background cannot be read."""
    labels = label_map(image)
    counts = np.bincount(labels.ravel(), minlength=len(_NAMES))[len(COLOURS) :]
    background = len(COLOURS) + int(counts.argmax())
    objects = []
    for place in PLACES:
        top, left = cell_origin(place)
        found = _read_cell(labels[top : top + CELL, left : left + CELL], background, place)
        if found is False:
            return None
        if isinstance(found, SceneObject):
            objects.append(found)
    return Scene(_NAMES[background], tuple(objects))


def shows_caption(image: NDArray[np.uint8], example: Example) -> bool:
    """Whether a picture shows what a text-to-image example's prompt says; sizes count where it gives them."""
    found, wanted = read(image), example.meta["scene"]
    if found is None or found.background != wanted.background or len(found.objects) != len(wanted.objects):
        return False
    return all(
        (seen.shape, seen.colour, seen.place) == (item.shape, item.colour, item.place)
        and (seen.size == item.size or f"{item.size} {item.name}" not in example.prompt)
        for seen, item in zip(found.objects, wanted.objects, strict=True)
    )


def score(example: Example, image: NDArray[np.uint8]) -> bool:
    """Whether a picture is exactly what the example asked for: the very scene of its target.

    Two tasks leave some freedom. Grounding an instance: any one instance may be boxed
    (`meta["alternatives"]`). Inpainting: every object with its shape, colour and place, and the pixels that
    were not masked unchanged; the size of an object that is wholly hidden cannot be known.

    Raises:
        ValueError: the example does not carry the scene it wants (only world examples can be scored exactly).
    """
    wanted = example.meta.get("scene")
    if not isinstance(wanted, Scene):
        raise ValueError(
            f"{example.id}: the oracle scores pictures of the embedded world; this example has no scene"
        )
    found = read(image)
    if found is None:
        return False
    if example.task == "inpainting":
        kept = ~example.meta["hole"]
        wrong = int((label_map(image) != label_map(draw(wanted)))[kept].sum())
        return found.caption == wanted.caption and wrong <= TOLERANCE
    return found in (wanted, *example.meta.get("alternatives", ()))
