"""Cut-outs with alpha on a background: the picture, and exactly where each of them is seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.data.record import Image, Mask

SOLID = 128
"""Alpha from which a pixel counts as the cut-out's."""


@dataclass(frozen=True, eq=False)
class CutOut:
    """An object in its place.

    `pixels` is RGBA uint8 [height, width, 4]; `left` and `top` are where its corner lies in the picture;
    `label` is what it is called (`bear`), `phrase` the same with an article (`a bear`), `number` its class.
    """

    label: str
    phrase: str
    number: int
    pixels: NDArray[np.uint8]
    left: int
    top: int

    @property
    def solid(self) -> Mask:
        """Where it is, in its own pixels."""
        mask: Mask = self.pixels[..., 3] >= SOLID
        return mask

    def place(self, height: int, width: int) -> str:
        """The quarter of a picture that its middle is in."""
        below = 2 * self.top + self.pixels.shape[0] >= height
        beside = 2 * self.left + self.pixels.shape[1] >= width
        return f"{'bottom' if below else 'top'} {'right' if beside else 'left'}"

    def tinted(self, colour: tuple[int, int, int]) -> CutOut:
        """The same in one colour, its light and shade kept."""
        levels = self.pixels[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        light = 0.25 + 0.75 * levels[..., None] / 255
        rgb = np.rint(light * np.array(colour, np.float32)).astype(np.uint8)
        return replace(self, pixels=np.concatenate([rgb, self.pixels[..., 3:]], axis=-1))


@dataclass(frozen=True, eq=False)
class Composition:
    """A background with cut-outs on it, each in front of those before it and wholly inside."""

    background: Image
    cut_outs: tuple[CutOut, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.background.shape[0], self.background.shape[1]

    def picture(self) -> Image:
        """All of it, uint8 [height, width, 3]; where alpha is whole, exactly the cut-out's own colours."""
        canvas = self.background.astype(np.float32)
        for item in self.cut_outs:
            area = self._area(item)
            alpha = item.pixels[..., 3:].astype(np.float32) / 255
            canvas[area] = alpha * item.pixels[..., :3] + (1 - alpha) * canvas[area]
        return np.rint(canvas).astype(np.uint8)

    @cached_property
    def masks(self) -> list[Mask]:
        """Where each cut-out is seen: bool [height, width], no two overlap."""
        covered = np.zeros(self.size, dtype=bool)
        masks: list[Mask] = []
        for item in reversed(self.cut_outs):
            mask = np.zeros(self.size, dtype=bool)
            mask[self._area(item)] = item.solid
            masks.append(mask & ~covered)
            covered |= mask
        return masks[::-1]

    def shown(self) -> list[float]:
        """How much of each cut-out is seen, 0 to 1."""
        pairs = zip(self.masks, self.cut_outs, strict=True)
        return [float(mask.sum() / max(1, item.solid.sum())) for mask, item in pairs]

    def depth(self) -> NDArray[np.uint8]:
        """How near each pixel is, [height, width]: 0 the background, 255 the cut-out in front."""
        levels = np.zeros(self.size, dtype=np.uint8)
        for number, mask in enumerate(self.masks, start=1):
            levels[mask] = 255 * number // len(self.cut_outs)
        return levels

    def classes(self) -> NDArray[np.int32]:
        """The class number of each pixel, [height, width]; 0 is the background."""
        numbers = np.zeros(self.size, dtype=np.int32)
        for item, mask in zip(self.cut_outs, self.masks, strict=True):
            numbers[mask] = item.number
        return numbers

    def exchanged(self, item: CutOut, *new: CutOut) -> Composition:
        """Another one has its place in the stack, or nothing."""
        position = self.cut_outs.index(item)
        return replace(self, cut_outs=(*self.cut_outs[:position], *new, *self.cut_outs[position + 1 :]))

    def with_front(self, item: CutOut) -> Composition:
        """One more in front of all."""
        return replace(self, cut_outs=(*self.cut_outs, item))

    def _area(self, item: CutOut) -> tuple[slice, slice]:
        height, width = item.pixels.shape[:2]
        return slice(item.top, item.top + height), slice(item.left, item.left + width)
