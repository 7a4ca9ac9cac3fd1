"""The source pictures of one call: prepared for the task, each distinct group once, and who reads which."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image as PilImage
from torch import Tensor

from recipes.cologen.data.record import Image, Mask
from recipes.cologen.errors import PictureError
from recipes.cologen.pipeline.pixels import (
    MAX_PIXELS,
    as_mask,
    chosen_size,
    distinct,
    fitted,
    grouped,
    in_unit_range,
    listed,
    own_size,
)
from recipes.cologen.pipeline.tasks import Annotator, prepared, shows_classes
from recipes.cologen.runs.generation import GenerationSettings

_logger = logging.getLogger(__name__)


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
class PictureRequest:
    """What a call says about its pictures."""

    image: Any
    mask: Any
    task: str | None
    annotator: Annotator | None
    height: int | None
    width: int | None
    max_pixels: int | None = None
    """Of a picture for which neither is given; None: `MAX_PIXELS`."""
    run: GenerationSettings = field(default_factory=GenerationSettings)
    """What the run that trained the experts fixes."""
    control: str | None = None
    """Kind of the control map, where it is known."""
    prompts: Sequence[str] | None = None
    """As the user wrote them; None: embeddings are given instead."""

    def trained_size(self, picture: PilImage.Image) -> tuple[int, int] | None:
        """Height and width that training gave such a picture, where the call says nothing of its size."""
        if (self.height, self.width, self.max_pixels) != (None, None, None):
            return None
        return self.run.size_of(picture.height, picture.width)

    def classes(self, batch: int) -> list[bool]:
        """Whether the first source of each prompt is a map whose colours stand for classes."""
        prompts = [""] * batch if self.prompts is None else self.prompts
        return [
            self.annotator is None and shows_classes(self.task, self.control, prompt) for prompt in prompts
        ]


def prepare_sources(
    request: PictureRequest, batch: int, side: int, default: int
) -> tuple[Sources | None, tuple[int, int]]:
    """Bring the pictures of a call to their sizes, and the first of each prompt to its task.

    Where a call says nothing of sizes and training had its own, all sources get the one that is nearest to
    the first one's shape. Else further sources are read as they are, and keep their own size in whole tokens,
    up to as many pixels as a picture without a size may have.

    Args:
        request: Pictures and what to do with them.
        batch: How many prompts there are.
        side: Pixels a side that a token covers.
        default: Side of a picture without source.

    Returns:
        The sources, None where there is no picture; and (height, width) of what is generated.

    Raises:
        PictureError: A prompt has more sources than an example of training; further sources of one place
            differ in size; `max_pixels` is less than a token; or as `prepared`, `grouped` and `listed`.
        ShapeError: as `chosen_size`.
    """
    most = MAX_PIXELS if request.max_pixels is None else request.max_pixels
    if most < side * side:
        raise PictureError(f"max_pixels is {most}; one token of this base covers {side}x{side} pixels.")
    if request.image is None:
        return None, chosen_size(request.height, request.width, None, side, default)
    groups = grouped(request.image, batch, "image")
    if request.run.max_sources is not None and len(groups[0]) > request.run.max_sources:
        raise PictureError(
            f"image: a prompt has {len(groups[0])} sources, but the experts were trained with at most "
            f"{request.run.max_sources} (data.max_sources of the run). Leave the further ones out."
        )
    trained = request.trained_size(groups[0][0])
    asked = trained or (request.height, request.width)
    size = chosen_size(*asked, groups[0][0], side, default, most)
    if trained is not None:
        _say_if_other(groups[0][0], size)
    elif asked == (None, None):
        _say_if_smaller(groups[0][0], size, most)
    masks: list[Mask | None] = [None] * batch
    if request.mask is not None:
        given = listed(request.mask, batch, "mask")
        read = {id(one): as_mask(one, "mask") for one in given}
        masks = [read[id(one)] for one in given]
    others = [group[1:] for group in groups]
    further = (
        _further(others, side, most)
        if trained is None
        else [tuple(fitted(picture, size) for picture in group) for group in others]
    )
    classes = request.classes(batch)
    seen = [
        (prepared(group[0], mask, size, request.task, request.annotator, shown), *beside)
        for group, mask, beside, shown in zip(groups, masks, further, classes, strict=True)
    ]
    kept, index = distinct(seen)
    originals = [fitted(group[0], size, classes=shown) for group, shown in zip(groups, classes, strict=True)]
    return Sources(tuple(kept), tuple(originals), tuple(index)), size


def _say_if_other(picture: PilImage.Image, size: tuple[int, int]) -> None:
    """Log that a source is read at a size of training, where that is not its own."""
    width, height = picture.size
    if (height, width) != size:
        _logger.warning(
            "a source is %dx%d pixels and no size was asked for: it is read at %dx%d, which training gave "
            "pictures of this shape. Give height and width, or max_pixels, for another.",
            *(width, height, size[1], size[0]),
        )


def _say_if_smaller(picture: PilImage.Image, size: tuple[int, int], most: int) -> None:
    """Log that a source is read at a smaller size than its own, since it has too many pixels."""
    width, height = picture.size
    if height * width > most and size[0] * size[1] < height * width:
        _logger.warning(
            "a source is %dx%d pixels and no size was asked for: it is read at %dx%d, since at most %d "
            "pixels are. Give height and width, or a larger max_pixels, for more.",
            *(width, height, size[1], size[0], most),
        )


def _further(groups: list[tuple[PilImage.Image, ...]], side: int, most: int) -> list[tuple[Image, ...]]:
    """Second sources and later ones, at their own sizes."""
    sizes = [
        tuple(own_size(picture.height, picture.width, side, most) for picture in group) for group in groups
    ]
    for group, own in zip(groups, sizes, strict=True):
        for picture, size in zip(group, own, strict=True):
            _say_if_smaller(picture, size, most)
    for number, place in enumerate(zip(*sizes, strict=True), start=2):
        if len(set(place)) > 1:
            found = ", ".join(f"{height}x{width}" for height, width in place)
            raise PictureError(
                f"image: source {number} has another size for each prompt ({found}, in whole tokens), and "
                "what one prompt generates must not depend on another's picture. Resize them to one size, or "
                "generate in calls of their own."
            )
    return [
        tuple(fitted(picture, size) for picture, size in zip(group, own, strict=True))
        for group, own in zip(groups, sizes, strict=True)
    ]
