"""The source pictures of one call: prepared for the task, each distinct one once, and who reads which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recipes.cologen.data.record import Image
from recipes.cologen.pipeline.pixels import chosen_size, distinct, fitted, in_unit_range, listed
from recipes.cologen.pipeline.tasks import Annotator, prepared


@dataclass(frozen=True, eq=False)
class Sources:
    """Pictures of one size, each once.

    Attributes:
        images: What the source stream sees, uint8 [height, width, 3] each.
        originals: The same before the task's preparation (no hole cut, no map made), one for each prompt.
        index: Which of `images` each prompt reads.
    """

    images: tuple[Image, ...]
    originals: tuple[Image, ...]
    index: tuple[int, ...]

    @property
    def pixels(self) -> Tensor:
        """`images` as `[distinct, 3, height, width]` in [-1, 1]."""
        return in_unit_range(self.images)

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
    """Bring the pictures of a call to its size and its task.

    Args:
        wanted: Pictures and what to do with them.
        batch: How many prompts there are.
        side: Pixels a side that a token covers.
        default: Side of a picture without source.

    Returns:
        The sources, None where there is no picture; and (height, width) of what is drawn.

    Raises:
        PictureError, ShapeError: as `prepared`, `listed` and `chosen_size`.
    """
    if wanted.image is None:
        return None, chosen_size(wanted.height, wanted.width, None, side, default)
    pictures = listed(wanted.image, batch, "image")
    size = chosen_size(wanted.height, wanted.width, pictures[0], side, default)
    masks: list[Any] = [None] * batch
    if wanted.mask is not None:
        masks = [fitted(mask, size) for mask in listed(wanted.mask, batch, "mask")]
    originals = [fitted(picture, size) for picture in pictures]
    seen = [
        prepared(image, mask, wanted.task, wanted.annotator)
        for image, mask in zip(originals, masks, strict=True)
    ]
    images, index = distinct(seen)
    return Sources(tuple(images), tuple(originals), tuple(index)), size
