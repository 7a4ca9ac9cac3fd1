"""What diffusers and accelerate do to a pipeline's models leaves sources and experts alone, or is refused."""

from types import SimpleNamespace

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig
from safetensors.torch import load_file

import prw
from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux import remove_source_stream

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


def test_vae_tiling_is_used(build, tools, photo) -> None:
    pipe = build()
    pipe.vae.enable_tiling()
    assert tools.draw(pipe, "a", photo).images.shape == (1, 48, 32, 3)


@pytest.mark.parametrize("timestep", ["same", pytest.param("zero", marks=pytest.mark.slow)])
def test_compiled_blocks_are_compiled_once_for_all(build, tools, photo, timestep) -> None:
    blocks = {"double_blocks": 1, "single_blocks": 9}
    plain = tools.draw(build(**blocks), "a", photo, source_timestep=timestep)
    pipe = build(**blocks)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=timestep == "same")
    assert tools.difference(plain, tools.draw(pipe, "a", photo, source_timestep=timestep)) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < (6 if timestep == "same" else 24)
    torch._dynamo.reset()


@pytest.fixture
def lora(build, tmp_path) -> SimpleNamespace:
    """A LoRA of all projections on disk."""
    pipe = build(experts=False)
    projections = ["to_q", "to_k", "to_v", "proj_mlp"]
    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=projections, init_lora_weights=False), "style"
    )
    pipe.transformer.save_lora_adapter(tmp_path / "lora", adapter_name="style")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    weights = {f"transformer.{name}": value for name, value in load_file(file).items()}
    return SimpleNamespace(weights=weights)


@both_timesteps
def test_a_lora_acts_beside_the_pool(build, tools, photo, lora, timestep) -> None:
    pipe = build()
    asked = {"source_timestep": timestep, "output_routing": True}
    plain = tools.draw(pipe, "a", photo, **asked)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    loaded = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters("style", 0.5)
    half = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters(["style"], [1.0])
    with pipe.weave.disabled():
        without = tools.draw(pipe, "a", photo, source_timestep=timestep)
    drawn = [plain, loaded, half, without]
    assert all(tools.difference(a, b) > 1e-5 for n, a in enumerate(drawn) for b in drawn[:n])
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.disable_lora()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.enable_lora()
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0
    with pytest.raises(prw.UnsupportedError, match="has the LoRA style"):
        pipe.save_pretrained("nowhere")
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    assert type(pipe.transformer.proj_out) is torch.nn.Linear and list(pipe.transformer.peft_config) == [
        "default"
    ]
    pipe.load_lora_weights(dict(lora.weights), adapter_name="again")
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0


def test_the_strength_of_adapters_is_the_pools_too(pipe, tools, photo, lora) -> None:
    with pipe.weave.disabled():
        base = tools.draw(pipe, "a", photo)
    assert tools.difference(base, tools.draw(pipe, "a", photo, joint_attention_kwargs={"scale": 0.0})) < 1e-6
    pipe.set_adapters("default", 0.0)
    assert tools.difference(base, tools.draw(pipe, "a", photo)) < 1e-6
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.set_adapters("style", 0.0)  # leaves the pool's own strength as it is
    assert tools.difference(base, tools.draw(pipe, "a", photo)) < 1e-6


def test_a_lora_cannot_take_the_pools_name(pipe, lora) -> None:
    with pytest.raises(prw.UnsupportedError, match="'default' is the pool's"):
        pipe.load_lora_weights(dict(lora.weights), adapter_name="default")


def test_without_a_pool_loras_are_diffusers_own(build, tools, photo, lora) -> None:
    pipe = build(experts=False)
    plain = tools.draw(pipe, "a", photo)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) > 1e-5
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) == 0


def fused(pipe) -> None:
    pipe.weave.eject()
    pipe.transformer.fuse_qkv_projections()


def parallel(pipe) -> None:
    pipe.transformer._parallel_config = object()  # what enable_parallelism leaves, without a process group


SILENT = {
    "context parallelism": (parallel, SourceStreamError, "splits the sequence"),
    "fused projections": (fused, SourceStreamError, "unfuse_qkv_projections"),
    "stock processors": (
        lambda pipe: pipe.transformer.set_attn_processor(FluxAttnProcessor()),
        SourceStreamError,
        "transformer_blocks.0.attn has a FluxAttnProcessor where",
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


@pytest.mark.parametrize(("spoil", "kind", "message"), SILENT.values(), ids=SILENT)
def test_what_would_pass_over_experts_in_silence_is_refused(pipe, photo, spoil, kind, message) -> None:
    with pytest.raises(kind, match=message):
        spoil(pipe)
        pipe("a", photo)


def test_a_lora_that_alone_is_active_is_refused(pipe, photo, lora) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.transformer.set_adapters("style")  # the model's own call, past the pipeline
    with pytest.raises(prw.PoolError, match=r"set_adapters\(\['default', 'style'\]\)"):
        pipe("a", photo)


def test_training_mode_is_left_as_it_was_and_draws_no_noise(pipe, tools, photo) -> None:
    before = tools.draw(pipe, "a", photo)
    pipe.transformer.train()
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0
    assert pipe.transformer.training
