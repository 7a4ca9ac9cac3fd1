"""Stops diffusers from fusing projections that have experts: the fused layer would go on without them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType

import torch

from prw.errors import UnsupportedError
from prw.layers import Site

FUSING = ("fuse_projections", "fuse_qkv_projections")
"""The methods in which diffusers copies the weights of separate projections into a new one."""
DEPTH = 8
"""How many callers up to look; other adapters may stand between."""


def refuse_fusing(sites: Mapping[str, Site]) -> None:
    """Refuse to show a projection's weight to diffusers' fusing, the one sign of it that a projection gets.

    Raises:
        UnsupportedError: names the projections of the site.
    """
    if torch.compiler.is_compiling() or not sites:
        return
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEPTH):
        if frame is None:
            return
        if frame.f_code.co_name in FUSING:
            paths = ", ".join(next(iter(sites.values())).projections)
            raise UnsupportedError(
                f"fuse_qkv_projections() would copy the base of {paths} into one new projection and leave "
                "the experts behind. Fuse the base model first and inject into the fused one, or call "
                "weave.eject() before fusing. (model.unfuse_qkv_projections() undoes what was fused so far.)"
            )
        frame = frame.f_back
