"""Diffusers' caches between steps: which of them a source stream can stand beside, and which are refused."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    Flux2Transformer2DModel,
    PyramidAttentionBroadcastConfig,
)

from recipes.cologen.errors import SourceStreamError

BY_ATTENTION = (PyramidAttentionBroadcastConfig, FasterCacheConfig)
"""Keep what an attention gave for a later step, whichever pass asks."""


def refuse_caches(transformer: Any, source_runs_alone: bool) -> None:
    """Refuse a cache that fails on this transformer, or would take one pass's attention for another's.

    Args:
        transformer: The transformer.
        source_runs_alone: Whether a call has a source, at timestep zero: a pass of its own between steps.

    Raises:
        SourceStreamError: Says why, and which caches work.
    """
    config = getattr(transformer, "_cache_config", None)
    if isinstance(config, FirstBlockCacheConfig) and isinstance(transformer, Flux2Transformer2DModel):
        raise SourceStreamError(
            f"FirstBlockCache does not work on FLUX.2 in diffusers {diffusers.__version__}, with or without "
            "a source: it keeps what a double block gave as two tensors and subtracts it from the one tensor "
            "that a single block gives. Switch it off: pipe.transformer.disable_cache(). "
            "TaylorSeerCacheConfig and MagCacheConfig run on FLUX.2."
        )
    if isinstance(config, BY_ATTENTION) and source_runs_alone:
        raise SourceStreamError(
            f"{type(config).__name__} keeps what attention gave from step to step without regard to which "
            "pass asks, and with source_timestep='zero' the source runs in a pass of its own: the noise "
            "would get the source's. Switch it off (pipe.transformer.disable_cache()), or use "
            "FirstBlockCacheConfig (FLUX.1), TaylorSeerCacheConfig or MagCacheConfig: they keep passes apart."
        )
