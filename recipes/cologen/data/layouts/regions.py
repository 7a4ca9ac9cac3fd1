"""Masks out of what data sets store for them: COCO's run lengths and polygons, class maps, drawn outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.raw import RawObject
from recipes.cologen.data.record import Mask
from recipes.cologen.errors import BrokenPictureError, DataSetError


def decoded_segmentation(segmentation: Any, height: int, width: int) -> Mask:
    """A COCO segmentation as a mask: bool [height, width].

    Args:
        segmentation: Polygons [[x0, y0, x1, y1, ...], ...], or run lengths {"counts", "size"}, compressed or
            as a list.
        height: Of the picture.
        width: Of the picture.

    Raises:
        BrokenPictureError: It is none of these, or of another size.
        DataSetError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise DataSetError("COCO masks are decoded with pycocotools: pip install 'prw[cologen]'") from error
    try:
        if isinstance(segmentation, Mapping):
            runs = dict(segmentation)
            if isinstance(runs["counts"], list):
                runs = coco.frPyObjects(runs, height, width)
        else:
            runs = coco.merge(coco.frPyObjects(list(segmentation), height, width))
        decoded = np.asarray(coco.decode(runs), dtype=bool)
    # pycocotools is C: what it makes of wrong input is of no one kind.
    except Exception as error:
        raise BrokenPictureError(
            f"a segmentation is neither COCO polygons nor run lengths ({error})"
        ) from error
    if decoded.shape != (height, width):
        raise BrokenPictureError(
            f"a segmentation is {decoded.shape[1]}x{decoded.shape[0]} pixels, its picture {width}x{height}"
        )
    return decoded


def polygon_mask(xs: Sequence[int], ys: Sequence[int], height: int, width: int) -> Mask:
    """The inside of an outline: bool [height, width]."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    points = np.stack([np.asarray(xs, dtype=np.int32), np.asarray(ys, dtype=np.int32)], axis=-1)
    cv2.fillPoly(canvas, [points], 1)
    return canvas.astype(bool)


def class_regions(
    classes: NDArray[np.int32], ignored: Sequence[int], min_area: float
) -> tuple[RawObject, ...]:
    """Each class of a class map as one object, if it covers at least a fraction of the picture."""
    found = []
    for number in np.unique(classes):
        mask = classes == number
        if number not in ignored and mask.mean() >= min_area and not mask.all():
            name = f"class {number}"
            found.append(RawObject(name, name, mask, None))
    return tuple(found)


def xywh_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    """COCO's box [x, y, width, height] as x0, y0, x1, y1."""
    x, y, width, height = box
    return x, y, x + width, y + height


def coco_object(annotation: Mapping[str, Any], label: str, category: str, size: tuple[int, int]) -> RawObject:
    """An object from a COCO annotation.

    Args:
        annotation: With `segmentation`, `bbox` or both.
        label: What it is called.
        category: Its class.
        size: (height, width) of the picture.
    """
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    mask = decoded_segmentation(segmentation, *size) if segmentation else None
    if mask is not None and not mask.any():
        mask = None
    return RawObject(label, category, mask, xywh_box(box) if box else None)
