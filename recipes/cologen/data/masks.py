"""Masks for inpainting: random strokes and boxes, the object itself, and a Bezier curve round its box.

Sizes follow the picture's shorter side, with the proportions of the sources' 256-pixel recipes
(LaMa, arXiv 2109.07161; Paint-by-Example, arXiv 2211.13227).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.record import Mask, MissingMetadataError

MAX_OBJECT_IOU = 0.3
"""A random mask that covers an object better than this is drawn again (CoLoGen, training data)."""
BEZIER_POINTS = 20
"""Points along the curve, all sides together (CoLoGen, training data)."""
_REDRAWS = 20


def intersection_over_union(first: Mask, second: Mask) -> float:
    """Overlap of two masks, 0 to 1; 0 when both are empty."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0


def _strokes(rng: np.random.Generator, height: int, width: int) -> Mask:
    """A few connected brush strokes with round ends."""
    side = min(height, width)
    canvas = np.zeros((height, width), dtype=np.uint8)
    x, y = int(rng.integers(width)), int(rng.integers(height))
    for _ in range(1 + int(rng.integers(4))):
        angle = rng.uniform(0, 2 * np.pi)
        length = rng.uniform(0.15, 0.6) * side
        end = (
            int(np.clip(x + length * np.cos(angle), 0, width - 1)),
            int(np.clip(y + length * np.sin(angle), 0, height - 1)),
        )
        thickness = max(1, round(float(rng.uniform(0.08, 0.3)) * side))
        cv2.line(canvas, (x, y), end, 1, thickness)
        x, y = end
    return canvas.astype(bool)


def _boxes(rng: np.random.Generator, height: int, width: int) -> Mask:
    """One to three boxes, an eighth to half of the shorter side each way."""
    mask = np.zeros((height, width), dtype=bool)
    low, high = max(1, min(height, width) // 8), max(2, min(height, width) // 2)
    for _ in range(1 + int(rng.integers(3))):
        box_height, box_width = (int(v) for v in rng.integers(low, high + 1, size=2))
        top = int(rng.integers(height - box_height + 1))
        left = int(rng.integers(width - box_width + 1))
        mask[top : top + box_height, left : left + box_width] = True
    return mask


def random_mask(rng: np.random.Generator, height: int, width: int, objects: list[Mask]) -> Mask:
    """Strokes or boxes, each half of the time, that no object's mask matches better than IoU 0.3.

    Returns:
        bool [height, width] with at least one pixel set and one clear.

    Raises:
        MissingMetadataError: Even the smallest hole in a corner matches an object better.
    """
    for _ in range(_REDRAWS):
        mask = (_strokes if rng.random() < 0.5 else _boxes)(rng, height, width)
        if mask.all() or not mask.any():
            continue
        if all(intersection_over_union(mask, other) <= MAX_OBJECT_IOU for other in objects):
            return mask
    return _corner_mask(height, width, objects)


def _corner_mask(height: int, width: int, objects: list[Mask]) -> Mask:
    """The corner block that objects cover least, as large as the limit lets: when every redraw failed."""
    rows, columns = max(1, height // 8), max(1, width // 8)
    while True:
        overlaps = []
        for top, left in ((0, 0), (0, width - columns), (height - rows, 0), (height - rows, width - columns)):
            mask = np.zeros((height, width), dtype=bool)
            mask[top : top + rows, left : left + columns] = True
            overlaps.append((max((intersection_over_union(mask, o) for o in objects), default=0.0), mask))
        overlap, best = min(overlaps, key=lambda pair: pair[0])
        if overlap <= MAX_OBJECT_IOU:
            return best
        if rows == columns == 1:
            raise MissingMetadataError(
                f"inpainting: every hole matches one of {len(objects)} objects better than IoU "
                f"{MAX_OBJECT_IOU}, even one pixel in a corner; the objects' masks are too small"
            )
        rows, columns = max(1, rows // 2), max(1, columns // 2)


def _quadratic(
    start: NDArray[np.float64], control: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Points of a quadratic Bezier curve, its start excluded."""
    t = np.arange(1, BEZIER_POINTS // 4 + 1)[:, None] / (BEZIER_POINTS // 4)
    curve: NDArray[np.float64] = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    return curve


def bezier_mask(rng: np.random.Generator, height: int, width: int, box: tuple[int, int, int, int]) -> Mask:
    """A wobbly blob round a box: four quadratic curves from corner to corner that bulge outwards.

    Args:
        rng: source of randomness.
        height: rows of the picture.
        width: columns of the picture.
        box: x0, y0, x1, y1 in pixels, end excluded.
    """
    x0, y0, x1, y1 = box
    grow = rng.uniform(0, 0.4, size=4) * np.array([x0, y0, width - x1, height - y1])
    left, top, right, bottom = x0 - grow[0], y0 - grow[1], x1 - 1 + grow[2], y1 - 1 + grow[3]
    middle_x, middle_y = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
    corners = np.array([[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]], dtype=np.float64)
    controls = np.array([[middle_x, top], [right, middle_y], [middle_x, bottom], [left, middle_y]])
    points = np.concatenate([_quadratic(corners[i], controls[i], corners[(i + 1) % 4]) for i in range(4)])
    points += rng.uniform(-1, 1, size=points.shape) * min(height, width) * 5 / 256
    polygon = np.clip(np.rint(points), 0, [width - 1, height - 1]).astype(np.int32)
    canvas = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(canvas, [polygon], 1)
    return canvas.astype(bool)
