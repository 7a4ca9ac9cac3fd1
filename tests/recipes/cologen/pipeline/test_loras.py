"""LoRAs beside the pool: they act, switch and leave without touching it, on both families."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import prw

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])


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


def test_a_lora_that_alone_is_active_is_refused(pipe, photo, lora) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.transformer.set_adapters("style")  # the model's own call, past the pipeline
    with pytest.raises(prw.PoolError, match=r"set_adapters\(\['default', 'style'\]\)"):
        pipe("a", photo)


def test_calls_that_would_go_over_the_pool_are_refused(pipe, tools, photo, lora) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    before = tools.draw(pipe, "a", photo)
    with pytest.raises(prw.UnsupportedError, match="fuse_lora goes over every adapter"):
        pipe.fuse_lora(adapter_names=["style"])
    with pytest.raises(prw.UnsupportedError, match="set_lora_device goes over every adapter"):
        pipe.set_lora_device(["style"], "cpu")
    with pytest.raises(prw.UnsupportedError, match="'default' is the pool, not a LoRA"):
        pipe.delete_adapters(["style", "default"])
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0  # nothing has changed
    pipe.delete_adapters("style")
    pipe.weave.eject()
    assert pipe.weave is None


def test_a_deleted_lora_leaves_the_pool(pipe, tools, photo, lora) -> None:
    before = tools.draw(pipe, "a", photo)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert tools.difference(before, tools.draw(pipe, "a", photo)) > 1e-5
    pipe.delete_adapters("style")
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0
    assert pipe.weave.experts == ("inpainting", "grounding")


@both_timesteps
def test_a_lora_acts_beside_the_pool_on_flux2(made, tools, photo, timestep) -> None:
    donor = made("klein", experts=False)
    projections = ["to_q", "to_v", "to_qkv_mlp_proj"]
    donor.transformer.add_adapter(
        LoraConfig(r=2, target_modules=projections, init_lora_weights=False), "style"
    )
    weights = {
        f"transformer.{name.replace('.style', '')}": value.detach().clone()
        for name, value in donor.transformer.state_dict().items()
        if ".lora_" in name
    }
    pipe = made("klein")
    asked = {"source_timestep": timestep, "output_routing": True}
    plain = tools.draw(pipe, "a", photo, **asked)
    pipe.load_lora_weights(dict(weights), adapter_name="style")
    loaded = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters("style", 0.5)
    half = tools.draw(pipe, "a", photo, **asked)
    with pipe.weave.disabled():
        without = tools.draw(pipe, "a", photo, source_timestep=timestep)
    drawn = [plain, loaded, half, without]
    assert all(tools.difference(a, b) > 1e-5 for n, a in enumerate(drawn) for b in drawn[:n])
    pipe.disable_lora()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    assert list(pipe.transformer.peft_config) == ["default"]
