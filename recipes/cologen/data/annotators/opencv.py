"""Maps that need no network, made in the loader's workers: Canny edges, blurred edges, line art."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.cologen.config.annotators import OPTIONS, AnnotatorSettings
from recipes.cologen.data.record import Image

_FORMS = {"canny": 2, "lineart": 2}
"""Of a map that the same options once made otherwise: how often it changed, and one. The others never did."""


def canny_map(image: Image, low: float = 100, high: float = 200) -> Image:
    """White edges on black, by Canny's detector with two thresholds, called once on the colours.

    OpenCV then takes each pixel's strongest gradient over the channels, as ControlNet's maps are made
    (https://github.com/lllyasviel/ControlNet-v1-1-nightly, annotator/canny).
    """
    return as_gray(cv2.Canny(np.ascontiguousarray(image), low, high).astype(np.float32))


def soft_edge_map(image: Image, blur: float = 0.8) -> Image:
    """Blurred edge strength, white on black: the look of HED maps, without its network."""
    strength = cv2.GaussianBlur(_steps(image), (3, 3), blur)
    return as_gray(255 * strength / max(float(strength.max()), 1.0))


def lineart_map(image: Image, threshold: float = 30) -> Image:
    """White lines on black wherever the picture changes by more than so many levels.

    White on black, as ControlNet 1.1 and controlnet_aux give line art to a network: both turn round what
    their detector draws dark on white.
    """
    return as_gray(np.where(_steps(image) > threshold, 255.0, 0.0).astype(np.float32))


OPENCV_MAPS: dict[str, Callable[..., Image]] = {
    "canny": canny_map,
    "soft_edge": soft_edge_map,
    "lineart": lineart_map,
}
"""Maps that OpenCV makes of a picture alone. A new one also gets its options in config/annotators.py and the
beginning of its prompts in data/control.py."""


class OpenCvAnnotator:
    """One of these maps with options of its own; called with a single picture it serves workers."""

    def __init__(self, map_kind: str, options: Mapping[str, float] | None = None) -> None:
        """Take the options that differ from their defaults."""
        self.map_kind = map_kind
        self.options = {**OPTIONS["opencv"][map_kind], **(options or {})}

    def __call__(self, image: Image) -> Image:
        """The map of one picture, uint8 [height, width, 3]."""
        return OPENCV_MAPS[self.map_kind](image, **self.options)

    def annotate(self, pixels: Tensor) -> Tensor:
        """The maps of a batch, one picture after the other."""
        pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
        maps = np.stack([self(picture) for picture in pictures])
        return torch.from_numpy(maps).permute(0, 3, 1, 2).to(pixels.device)

    @property
    def needs(self) -> str:
        """What it cannot work without."""
        return "opencv"

    def fingerprint(self) -> str:
        """Short hash of the map, its options and OpenCV's version."""
        form = (_FORMS[self.map_kind],) if self.map_kind in _FORMS else ()
        facts = repr((*form, self.map_kind, sorted(self.options.items()), cv2.__version__))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def open_cv(map_kind: str, settings: AnnotatorSettings, device: torch.device) -> OpenCvAnnotator:
    """The annotator that settings ask for; it has nothing to put on a device."""
    return OpenCvAnnotator(map_kind, settings.options)


def as_gray(values: NDArray[np.float32]) -> Image:
    """Levels [height, width] as a gray picture, rounded."""
    return np.repeat(np.rint(values).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _steps(image: Image) -> NDArray[np.float32]:
    """Largest change to the right or downward neighbour over the channels.

    Float [height, width], 0 to 255.
    """
    values = image.astype(np.float32)
    down = np.abs(np.diff(values, axis=0, append=values[-1:])).max(-1)
    right = np.abs(np.diff(values, axis=1, append=values[:, -1:])).max(-1)
    steps: NDArray[np.float32] = np.maximum(down, right)
    return steps
