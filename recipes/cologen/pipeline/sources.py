"""The source pictures of one call: prepared for the task, each distinct group once, and who reads which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image as PilImage
from torch import Tensor

from recipes.cologen.data.record import Image
from recipes.cologen.errors import PictureError
from recipes.cologen.pipeline.pixels import (
    chosen_size,
    distinct,
    fitted,
    grouped,
    in_unit_range,
    listed,
    own_size,
)
from recipes.cologen.pipeline.tasks import Annotator, prepared


@dataclass(frozen=True, eq=False)
class Sources:
    """The sources of each prompt, each distinct group of them once.

    Attributes:
        groups: What the source stream sees, uint8 [height, width, 3] each: the prompt's first source, second,
            ...; sources in one place have one size.
        originals: First sources before the task's preparation (no hole cut, no map made), one a prompt.
        index: Which of `groups` each prompt reads.
    """

    groups: tuple[tuple[Image, ...], ...]
    originals: tuple[Image, ...]
    index: tuple[int, ...]

    @property
    def pixels(self) -> tuple[Tensor, ...]:
        """The first sources, the second ones, ... as `[distinct, 3, height, width]` in [-1, 1]."""
        return tuple(in_unit_range(place) for place in zip(*self.groups, strict=True))

    @property
    def start_pixels(self) -> Tensor:
        """`originals` as `[prompts, 3, height, width]` in [-1, 1]: what image-to-image starts from."""
        return in_unit_range(self.originals)


@dataclass(frozen=True)
class Wanted:
    """What a call says about its pictures."""

    image: Any
    mask: Any
    task: str | None
    annotator: Annotator | None
    height: int | None
    width: int | None


def prepare_sources(
    wanted: Wanted, batch: int, side: int, default: int
) -> tuple[Sources | None, tuple[int, int]]:
    """Bring the pictures of a call to their sizes, and the first of each prompt to its task.

    Further sources are read as they are, as in training, and keep their own size in whole tokens.

    Args:
        wanted: Pictures and what to do with them.
        batch: How many prompts there are.
        side: Pixels a side that a token covers.
        default: Side of a picture without source.

    Returns:
        The sources, None where there is no picture; and (height, width) of what is drawn.

    Raises:
        PictureError: Further sources of one place differ in size; or as `prepared`, `grouped` and `listed`.
        ShapeError: as `chosen_size`.
    """
    if wanted.image is None:
        return None, chosen_size(wanted.height, wanted.width, None, side, default)
    groups = grouped(wanted.image, batch, "image")
    size = chosen_size(wanted.height, wanted.width, groups[0][0], side, default)
    masks: list[Any] = [None] * batch
    if wanted.mask is not None:
        masks = [fitted(mask, size) for mask in listed(wanted.mask, batch, "mask")]
    originals = [fitted(group[0], size) for group in groups]
    further = _further([group[1:] for group in groups], side)
    seen = [
        (prepared(image, mask, wanted.task, wanted.annotator), *others)
        for image, mask, others in zip(originals, masks, further, strict=True)
    ]
    kept, index = distinct(seen)
    return Sources(tuple(kept), tuple(originals), tuple(index)), size


def _further(groups: list[tuple[PilImage.Image, ...]], side: int) -> list[tuple[Image, ...]]:
    """Second sources and later ones, at their own sizes."""
    sizes = [tuple(own_size(picture, side) for picture in group) for group in groups]
    for number, place in enumerate(zip(*sizes, strict=True), start=2):
        if len(set(place)) > 1:
            found = ", ".join(f"{height}x{width}" for height, width in place)
            raise PictureError(
                f"image: source {number} has another size for each prompt ({found}, in whole tokens), and "
                "what one prompt draws must not depend on another's picture. Resize them to one size, or "
                "draw in calls of their own."
            )
    return [
        tuple(fitted(picture, size) for picture, size in zip(group, own, strict=True))
        for group, own in zip(groups, sizes, strict=True)
    ]
