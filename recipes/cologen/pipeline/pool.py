"""The pool of a pipeline: where its folder is, which adapter it is, and what would break its routing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    Flux2Transformer2DModel,
    PyramidAttentionBroadcastConfig,
)
from torch import nn

from prw import PrwConfig, Weave
from prw.errors import PoolError
from prw.tuner import pool_layers
from recipes.cologen.config.run import load_config
from recipes.cologen.errors import RunFolderError, SourceStreamError
from recipes.cologen.flux.source_stream import flux_attentions, has_source_stream
from recipes.cologen.flux.two_step import TwoStepProcessor
from recipes.cologen.runs.files import CONFIG, POOL
from recipes.cologen.runs.generation import GenerationSettings, generation_settings, read_generation
from recipes.cologen.runs.reader import RunReader

BY_ATTENTION = (PyramidAttentionBroadcastConfig, FasterCacheConfig)
"""Keep what an attention gave for a later step, whichever pass asks."""


class FoundPool(NamedTuple):
    """A pool's folder, its run's generation settings and folder; None where these are unknown."""

    folder: Path
    generation: GenerationSettings | None
    run: Path | None = None


def find_pool(path: str | Path) -> FoundPool:
    """Find the pool of a run (its newest finished stage), of a stage's checkpoint, or the folder itself.

    Raises:
        RunFolderError: It is a run without a finished stage.
        ConfigError: The run's config.yaml, or what lies beside the pool, cannot be read.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        run = RunReader(folder)
        if not run.finished_stages():
            raise RunFolderError(
                f"{folder} has no finished stage yet, so there is no pool to load; train first."
            )
        return FoundPool(run.pool(run.finished_stages()[-1]), generation_settings(run.settings), folder)
    if not (folder / "adapter_config.json").is_file() and (folder / POOL).is_dir():
        folder = folder / POOL
    # runs/NAME/checkpoints/STAGE/prw
    for around in folder.resolve().parents[:3]:
        if (around / CONFIG).is_file():
            return FoundPool(folder, generation_settings(load_config(around / CONFIG)), around)
    return FoundPool(folder, read_generation(folder))


def pool_of(transformer: Any) -> Weave | None:
    """The handle of the transformer's pool, however it got there; None where there is none.

    Raises:
        PoolError: There are several.
    """
    configs = getattr(transformer, "peft_config", None) or {}
    names = [name for name, config in configs.items() if isinstance(config, PrwConfig)]
    if len(names) > 1:
        raise PoolError(
            f"the transformer has several pools ({', '.join(names)}); a call would not know which is meant. "
            "Take all but one out: prw.Weave(transformer, name).eject()."
        )
    return Weave(transformer, names[0]) if names else None


def lora_names(model: nn.Module | None) -> tuple[str, ...]:
    """Adapters of a model that are no pool; none where there is no model."""
    configs = getattr(model, "peft_config", None) or {}
    return tuple(name for name, config in configs.items() if not isinstance(config, PrwConfig))


def refuse_what_breaks_routing(transformer: Any) -> None:
    """Refuse to generate with a transformer on which experts or source would be passed over in silence.

    Raises:
        SourceStreamError: Context or tensor parallelism is on, projections are fused, or an attention has
            another processor than the source stream's.
        PoolError: An adapter call has switched the pool off.
    """
    if getattr(transformer, "_parallel_config", None) is not None:
        raise SourceStreamError(
            "the transformer runs in parallel over devices (enable_parallelism), which splits the sequence "
            "without regard to where the noise ends and the source begins. Use one device for each pipeline, "
            "or several pipelines with a part of the prompts each."
        )
    if not has_source_stream(transformer):
        _explain_processors(transformer)
    weave = pool_of(transformer)
    if weave is None or not weave.experts:
        return
    for layer in pool_layers(transformer, weave.adapter).values():
        if layer.disable_adapters or weave.adapter not in layer.active_adapters:
            raise PoolError(
                f"the pool's adapter {weave.adapter!r} is switched off, so the picture would be generated "
                f"without experts. Switch it on: pipe.transformer.enable_adapters() and "
                f"pipe.transformer.set_adapters({[weave.adapter, *lora_names(transformer)]!r}). To generate "
                "without experts on purpose: with pipe.weave.disabled(): ..."
            )


def _explain_processors(transformer: Any) -> None:
    for site, attention in flux_attentions(transformer).items():
        found = type(attention.processor).__name__
        if attention.fused_projections:
            raise SourceStreamError(
                f"{site} has fused projections, so source and experts would be passed over. Call "
                "pipe.transformer.unfuse_qkv_projections() first."
            )
        if not isinstance(attention.processor, TwoStepProcessor):
            raise SourceStreamError(
                f"{site} has a {found} where the source stream's processor belongs, so source and experts "
                "would be passed over. Something has replaced it since the pipeline was made (an IP-Adapter, "
                "set_attn_processor, remove_source_stream): load the base again, "
                "or put stock processors back and make a new pipeline over them."
            )


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
