"""Brings a picture and all that belongs to it to one size: the middle is cut out, boxes and masks follow.

Training, `generate`, the page and the pipelines bring their pictures to a size by these functions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from recipes.cologen.data.buckets import Buckets, Size
from recipes.cologen.data.decoding import decoding, is_deep
from recipes.cologen.data.raw import Box, RawObject, RawRecord
from recipes.cologen.data.reading import opaque
from recipes.cologen.data.record import Image, Mask, Pair, Record, RecordObject
from recipes.cologen.data.text import cleaned
from recipes.cologen.errors import BrokenPictureError, DataSetError

CLASS_MAPS = ("segmentation",)
"""Control maps whose colours stand for classes."""


class Frame(NamedTuple):
    """The part of a picture that is kept (left, top, right, bottom in its pixels) and the size it gets."""

    crop: tuple[float, float, float, float]
    width: int
    height: int


def framed(raw: RawRecord, size: Size | Buckets | None, max_sources: int = 1) -> Record:
    """A record whose pictures all have one size; with buckets, its pairs may have another.

    Args:
        raw: As stored.
        size: (height, width) to give; None keeps the picture's own, which its pairs then get too. Of buckets
            the picture gets the nearest one, and all pairs of one task that of the first of them. Further
            sources of a pair get the picture's own size.
        max_sources: Source pictures that a pair may have, the record's own included.

    Raises:
        BrokenPictureError: A mask or a map has another size than its picture; pixels cannot be decoded; a
            depth map has no finite value.
        DataSetError: A pair has more sources.
    """
    _check_sources(raw, max_sources)
    own = size.nearest(*raw.picture.size[::-1]) if isinstance(size, Buckets) else size
    frame = frame_of(raw.picture.size, own)
    objects = (_object(raw, item, frame) for item in raw.objects)
    # Pairs that differ in their prompt alone share their picture, which is then resized once.
    paired = paired_sizes(raw, size)
    beside = own or (raw.picture.height, raw.picture.width)
    seconds = {(id(pair.picture), paired[pair.task]): pair.picture for pair in raw.pairs}
    seconds |= {(id(one), beside): one for pair in raw.pairs for one in pair.further}
    pixels = {
        key: resized_pixels(picture, frame_of(picture.size, key[1])) for key, picture in seconds.items()
    }
    depth, lost = (None, 0) if raw.depth is None else _depth(raw, raw.depth, frame)
    return Record(
        id=raw.id,
        image=resized_pixels(raw.picture, frame),
        caption=_text(raw, raw.caption),
        objects=tuple(item for item in objects if item is not None),
        depth=depth,
        depth_lost=lost,
        segmentation=None if raw.segmentation is None else _classes(raw, raw.segmentation, frame),
        pairs=tuple(
            Pair(
                task=pair.task,
                image=pixels[id(pair.picture), paired[pair.task]],
                prompt=_text(raw, pair.prompt),
                kind=pair.kind,
                further=tuple(pixels[id(one), beside] for one in pair.further),
            )
            for pair in raw.pairs
        ),
        maps={
            kind: resized_pixels(_alike(raw, picture, f"{kind} map"), frame, classes=kind in CLASS_MAPS)
            for kind, picture in raw.maps.items()
        },
        origin=raw.origin,
    )


def _check_sources(raw: RawRecord, most: int) -> None:
    found = max((1 + len(pair.further) for pair in raw.pairs), default=1)
    if found > most:
        raise DataSetError(
            f"{raw.id}: a pair has {found} source pictures, but data.max_sources is {most}. Read them all "
            f"with --set data.max_sources={found}, or take the further ones (`sources`) out of the pair"
        )


def paired_sizes(raw: RawRecord, size: Size | Buckets | None) -> dict[str, Size]:
    """The size (height, width) that the pairs of each task get."""
    if not isinstance(size, Buckets):
        return {pair.task: size or (raw.picture.height, raw.picture.width) for pair in raw.pairs}
    first = {pair.task: pair.picture for pair in reversed(raw.pairs)}
    return {task: size.nearest(picture.height, picture.width) for task, picture in first.items()}


def frame_of(picture: tuple[int, int], size: tuple[int, ...] | None) -> Frame:
    """The middle of a picture (width, height) with the shape of `size` (height, width)."""
    width, height = picture
    if size is None:
        return Frame((0.0, 0.0, float(width), float(height)), width, height)
    scale = min(width / size[1], height / size[0])
    # Rounding must not put the cut outside of the picture by a hair, which PIL refuses.
    left, top = max(0.0, (width - scale * size[1]) / 2), max(0.0, (height - scale * size[0]) / 2)
    return Frame((left, top, width - left, height - top), size[1], size[0])


def stretched(stored: tuple[int, ...], size: tuple[int, int]) -> Frame:
    """All of a picture or mask (height, width), at the size (height, width)."""
    return Frame((0.0, 0.0, float(stored[1]), float(stored[0])), size[1], size[0])


def resized_pixels(picture: PilImage.Image, frame: Frame, *, classes: bool = False) -> Image:
    """The frame's part of a picture as pixels, uint8 [height, width, 3].

    Args:
        picture: As stored; what is transparent in it is white.
        frame: What is kept of it.
        classes: Whether its colours stand for classes; none is then mixed from two, which would be a third.
    """
    kind = PilImage.Resampling.NEAREST if classes else PilImage.Resampling.LANCZOS
    return np.asarray(_resize(opaque(picture).picture, frame, kind)).copy()


def resized_mask(mask: Mask, frame: Frame) -> Mask:
    """The frame's part of a mask, by nearest neighbour: bool [height, width]."""
    resized = _resize(PilImage.fromarray(mask.astype(np.uint8)), frame, PilImage.Resampling.NEAREST)
    return np.asarray(resized) > 0


def box_around(mask: Mask | None) -> tuple[int, int, int, int] | None:
    """The box around a mask's true pixels; None where there are none."""
    if mask is None or not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _resize(picture: PilImage.Image, frame: Frame, resample: PilImage.Resampling) -> PilImage.Image:
    if resample is PilImage.Resampling.LANCZOS and _is_enlarged(picture, frame):
        resample = PilImage.Resampling.NEAREST
    return picture.resize((frame.width, frame.height), resample, box=frame.crop)


def _is_enlarged(picture: PilImage.Image, frame: Frame) -> bool:
    """Whether the frame's part shows every pixel as a square of several, as `generate` writes small pictures.

    Nearest neighbour then gives the small picture back exactly.
    """
    left, top, right, bottom = frame.crop
    factor = (right - left) / frame.width
    whole = all(number.is_integer() for number in (factor, *frame.crop))
    if not whole or factor < 2 or (bottom - top) != factor * frame.height:
        return False
    pixels = np.asarray(picture)[int(top) : int(bottom), int(left) : int(right)]
    squares = pixels.reshape(frame.height, int(factor), frame.width, int(factor), -1)
    corners = squares[:, :1, :, :1]
    # The first row shows for almost every picture that it was not enlarged.
    return bool((squares[:1] == corners[:1]).all() and (squares == corners).all())


def _alike(raw: RawRecord, picture: PilImage.Image, what: str) -> PilImage.Image:
    if picture.size != raw.picture.size:
        raise BrokenPictureError(
            f"{raw.id}: the {what} is {picture.size[0]}x{picture.size[1]} pixels, its picture "
            f"{raw.picture.size[0]}x{raw.picture.size[1]}; both should have one size"
        )
    return picture


def _object(raw: RawRecord, item: RawObject, frame: Frame) -> RecordObject | None:
    """The object as far as the frame shows it; None when the cut leaves nothing of it."""
    mask: Mask | None = None
    if item.mask is not None:
        _alike(raw, PilImage.fromarray(item.mask), f"mask of {item.label!r}")
        mask = resized_mask(item.mask, frame)
        if not mask.any():
            return None
    box = _framed_box(item.box, frame) if item.box is not None else box_around(mask)
    if box is None:
        return None
    return RecordObject(_text(raw, item.label), _text(raw, item.category), mask, box)


def _text(raw: RawRecord, text: str) -> str:
    """A text as it is trained on."""
    try:
        return cleaned(text)
    except BrokenPictureError as error:
        raise BrokenPictureError(f"{raw.id}: {error}") from error


def _depth(raw: RawRecord, picture: PilImage.Image, frame: Frame) -> tuple[NDArray[np.float32], int]:
    """Depth in [0, 1], 1 nearest, stretched over the finite values; and how many pixels have none.

    A pixel without a finite value (NaN or infinite), or a transparent one, counts as farthest.
    """
    _alike(raw, picture, "depth map")
    with decoding():
        values = np.asarray(picture if is_deep(picture) else _gray(picture), dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BrokenPictureError(
            f"{raw.id}: none of the {values.size} pixels of the depth map is a finite number; save it anew"
        )
    low, high = float(values[finite].min()), float(values[finite].max())
    # Of one depth everywhere nothing is nearer than the rest; 1 keeps the division whole.
    shares = (np.where(finite, values, low) - low) / ((high - low) or 1.0)
    resized = _resize(PilImage.fromarray(shares.astype(np.float32)), frame, PilImage.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0.0, 1.0), int(values.size - finite.sum())


def _gray(picture: PilImage.Image) -> PilImage.Image:
    return opaque(picture, "black").picture.convert("L")


def _classes(raw: RawRecord, numbers: NDArray[np.int32], frame: Frame) -> NDArray[np.int64]:
    stored = _alike(raw, PilImage.fromarray(numbers.astype(np.int32)), "segmentation")
    return np.asarray(_resize(stored, frame, PilImage.Resampling.NEAREST), dtype=np.int64)


def _framed_box(box: Box, frame: Frame) -> tuple[int, int, int, int] | None:
    """A box in the frame's pixels, clipped to it; None when it lies outside."""
    left, top, right, bottom = frame.crop
    across, down = frame.width / (right - left), frame.height / (bottom - top)
    x0, x1 = max(0.0, (box[0] - left) * across), min(float(frame.width), (box[2] - left) * across)
    y0, y1 = max(0.0, (box[1] - top) * down), min(float(frame.height), (box[3] - top) * down)
    if x0 >= x1 or y0 >= y1:
        return None
    return int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))
