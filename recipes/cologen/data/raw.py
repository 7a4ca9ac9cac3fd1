"""What a source says of one picture, before it is brought to the size that training asks for (framing.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from recipes.cologen.data.record import Mask, Origin

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, end excluded."""


@dataclass(frozen=True)
class RawObject:
    """One thing in a picture; it has a mask of the picture's size, a box, or both."""

    label: str
    category: str
    mask: Mask | None
    box: Box | None


@dataclass(frozen=True)
class RawPair:
    """A second picture that belongs to the first, with the prompt that leads to it."""

    task: str
    picture: PilImage.Image
    prompt: str
    kind: str = "given"
    further: tuple[PilImage.Image, ...] = ()
    """Further sources beside the first picture."""


@dataclass(frozen=True)
class RawRecord:
    """One picture as it is stored, with all that is known about it.

    `depth` is a gray picture, brighter where nearer; `segmentation` is whole numbers [height, width]; `maps`
    are control maps that are stored ready-made.
    """

    id: str
    picture: PilImage.Image
    caption: str
    origin: Origin
    objects: tuple[RawObject, ...] = ()
    depth: PilImage.Image | None = None
    segmentation: NDArray[np.int32] | None = None
    maps: Mapping[str, PilImage.Image] = field(default_factory=dict)
    pairs: tuple[RawPair, ...] = ()
