"""Diffusers' caches between steps: those that run keep the source apart, those that cannot are refused."""

from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    Flux2KleinPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from recipes.cologen.errors import SourceStreamError

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])
both_families = pytest.mark.parametrize("family", ["flux1", "klein"])


def broadcast(pipe: Any) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: int(pipe.current_timestep),
    )


APART = {
    "taylor": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "mag": MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4), retention_ratio=0.25),
}


@both_timesteps
@both_families
@pytest.mark.parametrize("config", APART.values(), ids=APART)
def test_a_cache_that_keeps_passes_apart_reads_the_source(
    made, tools, photo, family, config, timestep
) -> None:
    pipe = made(family, double_blocks=2)
    asked = {"source_timestep": timestep, "num_inference_steps": 4}
    plain = tools.draw(pipe, "a", photo, **asked)
    pipe.transformer.enable_cache(config)
    drawn = tools.draw(pipe, "a", photo, **asked)
    assert tools.difference(drawn, plain) > 1e-5  # steps were left out
    assert tools.difference(drawn, tools.draw(pipe, "a", tools.picture(1), **asked)) > 1e-4
    assert (
        tools.difference(drawn, tools.draw(pipe, "a", photo, **asked)) == 0
    )  # nothing is left of other calls
    pipe.transformer.disable_cache()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0


@both_families
def test_a_cache_that_mixes_passes_is_refused_where_there_are_two(made, tools, photo, family) -> None:
    pipe = made(family, double_blocks=2)
    pipe.transformer.enable_cache(broadcast(pipe))
    for pictures in (photo, [[photo, photo]]):
        with pytest.raises(
            SourceStreamError, match="PyramidAttentionBroadcastConfig keeps what attention gave"
        ):
            tools.draw(pipe, "a", pictures, source_timestep="zero")
    one_pass = tools.draw(pipe, "a", photo, source_timestep="same", num_inference_steps=4)
    other = tools.draw(pipe, "a", tools.picture(1), source_timestep="same", num_inference_steps=4)
    assert tools.difference(one_pass, other) > 1e-4
    tools.draw(pipe, "a", source_timestep="zero", height=48, width=32)  # and without a source it is one
    pipe.transformer.disable_cache()
    pipe.transformer._cache_config = FasterCacheConfig()
    with pytest.raises(SourceStreamError, match="FasterCacheConfig keeps"):
        tools.draw(pipe, "a", photo, source_timestep="zero")


def test_first_block_cache_is_refused_on_flux2_as_long_as_diffusers_fails(made, tools, photo) -> None:
    pipe = made("klein", double_blocks=2)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    for asked in ({}, {"image": photo}):
        with pytest.raises(SourceStreamError, match=r"does not work on FLUX\.2 in diffusers"):
            tools.draw(pipe, "a", **asked)
    stock = Flux2KleinPipeline(**pipe.components, is_distilled=False)
    stock.set_progress_bar_config(disable=True)
    # When this no longer fails, diffusers has mended it: take the refusal away.
    with pytest.raises(TypeError, match="unsupported operand"):
        stock(prompt="a", height=48, width=32, num_inference_steps=2, max_sequence_length=128)
