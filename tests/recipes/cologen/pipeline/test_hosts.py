"""What diffusers and accelerate do to a pipeline's models leaves sources and experts alone, or is refused."""

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

import prw
from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux import remove_source_stream
from recipes.cologen.flux.source_stream import REPLACEMENTS, flux_attentions

CPU = torch.device("cpu")
both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])


def group(pipe, kind: str) -> None:
    more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **more)


# Hooks on the CPU: what moves where is not tested here, but everything that a hook does to a forward is.
HOSTS = {
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offload": lambda pipe: [accelerate.cpu_offload(m, CPU) for m in (pipe.transformer, pipe.vae)],
    "group offload by block": lambda pipe: group(pipe, "block_level"),
    "group offload by leaf": lambda pipe: group(pipe, "leaf_level"),
    "pipeline group offload": lambda pipe: pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
    "first block cache": lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0)),
    "attention backend": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
    "vae slicing": lambda pipe: pipe.vae.enable_slicing(),
}


@both_timesteps
@pytest.mark.parametrize("family", ["flux1", "klein"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_host_changes_no_picture(made, tools, photo, host, family, timestep) -> None:
    if family == "klein" and host == "first block cache":
        return  # refused there: test_caches.py
    asked = {"source_timestep": timestep, "num_inference_steps": 3, "output_routing": True}
    pictures = [photo, tools.picture(1)]
    plain = tools.draw(made(family), ["a red circle"] * 2, pictures, **asked)
    pipe = made(family)
    try:
        HOSTS[host](pipe)
        for _ in range(2):
            hosted = tools.draw(pipe, ["a red circle"] * 2, pictures, **asked)
            assert tools.difference(plain, hosted) < 1e-5
            assert torch.equal(plain.routing.chosen, hosted.routing.chosen)
    finally:
        pipe.transformer.reset_attention_backend()


@both_timesteps
def test_a_cache_that_skips_blocks_still_reads_the_source(build, tools, photo, timestep) -> None:
    pipe = build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=100.0))
    asked = {
        "source_timestep": timestep,
        "num_inference_steps": 4,
        "negative_prompt": "",
        "true_cfg_scale": 2.0,
    }
    drawn = tools.draw(pipe, "a", photo, output_routing=True, **asked)
    assert tools.difference(drawn, tools.draw(pipe, "a", tools.picture(1), **asked)) > 1e-4
    assert (
        tools.difference(drawn, tools.draw(pipe, "a", photo, **asked)) == 0
    )  # nothing is left of other calls
    computed = (drawn.routing.chosen >= 0).flatten(2).all(-1).sum(0)
    assert computed.tolist() == ([4, 1, 1, 1] if timestep == "same" else [1, 1, 1, 1])


@torch.no_grad()
def test_vae_tiling_is_used_for_the_source_and_for_what_is_drawn(build, tools) -> None:
    pipe, wide = build(), tools.picture(0, 32, 96)
    latents = tools.draw(pipe, "a", wide, output_type="latent").images
    whole = pipe.family.decode(latents, (32, 96), "np")
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 64, 8
    tiled = pipe.family.decode(latents, (32, 96), "np")
    assert tools.difference(whole, tiled) > 1e-4  # the tiny VAE's norms see a tile
    source = tools.draw(pipe, "a", wide, output_type="latent").images
    assert not torch.equal(source, latents)  # read tile by tile
    drawn = tools.draw(pipe, "a", wide)
    assert drawn.images.shape == (1, 32, 96, 3)
    assert tools.difference(drawn, pipe.family.decode(source, (32, 96), "np")) == 0


@pytest.mark.parametrize(("family", "timestep"), [
    ("flux1", "same"),
    pytest.param("flux1", "zero", marks=pytest.mark.slow),
    pytest.param("klein", "same", marks=pytest.mark.slow),
    pytest.param("klein", "zero", marks=pytest.mark.slow),
])  # fmt: skip
def test_compiled_blocks_are_compiled_once_for_all(made, tools, photo, family, timestep) -> None:
    graphs = []
    for single_blocks in (3, 9):
        blocks = {"double_blocks": 1, "single_blocks": single_blocks}
        plain = tools.draw(made(family, **blocks), "a", photo, source_timestep=timestep)
        pipe = made(family, **blocks)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=timestep == "same")
        assert tools.difference(plain, tools.draw(pipe, "a", photo, source_timestep=timestep)) < 1e-5
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        torch._dynamo.reset()
    assert graphs[0] == graphs[1] > 0


def fused(pipe) -> None:
    pipe.weave.eject()
    pipe.transformer.fuse_qkv_projections()


def parallel(pipe) -> None:
    pipe.transformer._parallel_config = object()  # what enable_parallelism leaves, without a process group


def stock_processors(pipe) -> None:
    for attention in flux_attentions(pipe.transformer).values():
        attention.set_processor(REPLACEMENTS[type(attention)].stock())


def a_foreign_one(pipe) -> None:
    """Only one of them, as a library does that looks at attention."""
    list(flux_attentions(pipe.transformer).values())[-1].set_processor(Watching())


class Watching(FluxAttnProcessor):
    """Somebody else's."""


SILENT = {
    "one foreign processor": (a_foreign_one, SourceStreamError, "has a Watching where the source stream"),
    "context parallelism": (parallel, SourceStreamError, "splits the sequence"),
    "fused projections": (fused, SourceStreamError, "unfuse_qkv_projections"),
    "stock processors": (
        stock_processors,
        SourceStreamError,
        "transformer_blocks.0.attn has a Flux2?AttnProcessor where",
    ),
    "no source stream": (
        lambda pipe: remove_source_stream(pipe.transformer),
        SourceStreamError,
        "passed over",
    ),
    "an IP-Adapter": (lambda pipe: pipe.load_ip_adapter("x"), SourceStreamError, "replaces the attention"),
    "disabled adapters": (lambda pipe: pipe.transformer.disable_adapters(), prw.PoolError, "enable_adapters"),
    "fusing": (
        lambda pipe: pipe.transformer.fuse_qkv_projections(),
        prw.UnsupportedError,
        "leave the experts behind",
    ),
}


@pytest.mark.parametrize("family", ["flux1", "klein"])
@pytest.mark.parametrize(("spoil", "kind", "message"), SILENT.values(), ids=SILENT)
def test_what_would_pass_over_experts_in_silence_is_refused(
    made, photo, family, spoil, kind, message
) -> None:
    pipe = made(family)
    if spoil is SILENT["an IP-Adapter"][0] and not hasattr(pipe, "load_ip_adapter"):
        return  # FLUX.2's pipelines have none
    with pytest.raises(kind, match=message):
        spoil(pipe)
        pipe("a", photo)


def test_training_mode_is_left_as_it_was_and_draws_no_noise(pipe, tools, photo) -> None:
    before = tools.draw(pipe, "a", photo)
    pipe.transformer.train()
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0
    assert pipe.transformer.training
