"""What an annotator is: something that makes control maps of a batch of pictures."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Annotator(Protocol):
    """Makes one kind of control map."""

    map_kind: str
    """Which: `canny`, `depth`, `soft_edge`, `lineart` or `segmentation`."""

    @property
    def needs(self) -> str:
        """What it cannot work without: a package, or a network at a path."""

    def fingerprint(self) -> str:
        """Short hash of all that decides what it makes: weights, preparation, options, precision.

        A cache of what was made from its maps is good for this fingerprint alone.
        """

    def annotate(self, pixels: Tensor) -> Tensor:
        """The maps of a batch, none of which depends on its batch-mates.

        Args:
            pixels: uint8 [batch, 3, height, width], on the annotator's device.

        Returns:
            uint8 [batch, 3, height, width], as bright as a stored map would be.
        """
