"""Diffusers switches, weighs, casts and offloads a pool as it does a LoRA, on FLUX and on a UNet."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module

import prw
from tests.prw.hosts.conftest import LORA, POOL, unet

TWO_ADAPTERS = "Already found a `peft_config` attribute"


def experts_of(model):
    return {name: weight for name, weight in model.named_parameters() if ".prw_" in name}


@pytest.fixture
def pool(denoiser, wake):
    """The denoiser with a pool by its own `add_adapter`, and its output before and after."""
    before = denoiser()
    denoiser.model.add_adapter(prw.PrwConfig(**POOL), "pool")
    assert torch.equal(denoiser(), before), "a new pool changes nothing"
    weave = prw.Weave(denoiser.model, "pool")
    wake(weave)
    assert len(weave.sites) == denoiser.sites
    return weave, before, denoiser()


def test_it_is_switched_off_on_and_deleted(denoiser, pool):
    _, before, after = pool
    assert not torch.equal(after, before)
    denoiser.model.disable_adapters()
    assert torch.equal(denoiser(), before)
    denoiser.model.enable_adapters()
    assert torch.equal(denoiser(), after)
    assert denoiser.model.active_adapters() == ["pool"]
    denoiser.model.delete_adapters("pool")
    assert torch.equal(denoiser(), before)
    assert not experts_of(denoiser.model)


def test_set_adapters_weighs_it(denoiser, pool):
    _, before, after = pool
    outputs = []
    for weight in (0.0, 0.5, 1.0):
        denoiser.model.set_adapters("pool", weights=weight)
        outputs.append(denoiser())
    assert torch.equal(outputs[0], before)
    assert torch.equal(outputs[2], after)
    assert not torch.equal(outputs[1], before)
    assert not torch.equal(outputs[1], after)


def test_the_weight_multiplies_the_experts_part(make_host, wake):
    host = make_host("flux")
    host.model.eval()
    weave = prw.inject(host.model, **POOL)
    wake(weave)
    key = host.model.transformer_blocks[0].attn.to_k
    hidden = torch.randn(2, 6, key.in_features)
    base, whole = prw.project(key, hidden, routed=False), key(hidden)
    host.model.set_adapters("default", weights=0.25)
    assert torch.allclose(key(hidden), base + 0.25 * (whole - base), atol=1e-6)


def test_attention_kwargs_scale_it_for_one_forward(denoiser, pool):
    _, before, after = pool

    def scaled(scale):
        kwargs = {denoiser.extras["scale"]: {"scale": scale}}
        return denoiser.read(denoiser.model(**denoiser.inputs, **kwargs))

    assert torch.equal(scaled(0.0), before)
    assert torch.equal(denoiser(), after), "and it is as before"
    half = scaled(0.5)
    assert torch.equal(denoiser(), after)
    denoiser.model.set_adapters("pool", weights=0.5)
    assert torch.equal(denoiser(), half), "the same as a weight"
    assert torch.equal(scaled(1.0), half)


def test_a_unet_takes_a_weight_per_block(wake):
    host = unet()
    host.model.eval()
    before = host()
    weave = prw.inject(host.model, **POOL)
    wake(weave)
    host.model.set_adapters("default", weights={"down": 0.0, "mid": 0.0, "up": 0.0})
    assert torch.equal(host(), before)
    host.model.set_adapters("default", weights={"down": 0.0, "mid": 1.0, "up": 0.0})
    assert not torch.equal(host(), before)


def test_fp8_casting_passes_over_experts_and_gates(denoiser, pool):
    weave, *_ = pool
    weights = {name: weight.clone() for name, weight in experts_of(denoiser.model).items()}
    untouched = copy.deepcopy(denoiser)
    denoiser.model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {weight.dtype for name, weight in denoiser.model.named_parameters() if ".prw_" not in name}
    assert torch.float8_e4m3fn in stored, "the base is cast"
    assert all(torch.equal(weight, weights[name]) for name, weight in experts_of(denoiser.model).items())
    assert not torch.equal(denoiser(), untouched())
    weave.add_expert("c")  # later ones are not cast either
    assert {weight.dtype for weight in experts_of(denoiser.model).values()} == {torch.float32}
    assert denoiser().isfinite().all()


def test_a_pool_goes_onto_a_base_that_is_cast_to_fp8_already(denoiser, wake):
    denoiser.model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    before = denoiser()
    weave = prw.inject(denoiser.model, **POOL)
    assert torch.equal(denoiser(), before)
    wake(weave)
    assert {weight.dtype for weight in experts_of(denoiser.model).values()} == {torch.float32}
    assert not torch.equal(denoiser(), before)
    weave.eject()
    assert torch.equal(denoiser(), before)


def test_accelerate_offloads_experts_one_by_one(denoiser, pool, tmp_path):
    weave, _, after = pool
    with torch.no_grad():
        accelerate.cpu_offload(denoiser.model, torch.device("cpu"))
        assert all(weight.is_meta for weight in experts_of(denoiser.model).values())
        assert torch.equal(denoiser(), after)
    with pytest.raises(prw.StorageError, match="remove_all_hooks"):
        weave.save_pretrained(tmp_path / "pool")
    with pytest.raises(prw.UnsupportedError, match="remove_all_hooks"):
        weave.add_expert("c")
    remove_hook_from_module(denoiser.model, recurse=True)
    weave.add_expert("c")
    weave.save_pretrained(tmp_path / "pool")


def test_a_pool_is_not_put_onto_offloaded_weights(denoiser):
    accelerate.cpu_offload(denoiser.model, torch.device("cpu"))
    with pytest.raises(prw.UnsupportedError, match="offloading off first"):
        prw.inject(denoiser.model, **POOL)
    assert not experts_of(denoiser.model)


@pytest.mark.filterwarnings(f"ignore:{TWO_ADAPTERS}:UserWarning")
def test_a_lora_that_diffusers_loads_without_a_name_lives_beside_the_pool(denoiser, twin, wake, tmp_path):
    other = twin()
    other.model.add_adapter(LORA, "style")
    other.model.save_lora_adapter(tmp_path, "style")
    with_lora = other()
    weave = prw.inject(denoiser.model, **POOL)
    wake(weave)
    alone = denoiser()
    denoiser.model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    both = denoiser()
    with weave.disabled():
        assert torch.equal(denoiser(), with_lora), "the LoRA acts"
    assert not torch.equal(both, with_lora), "and so does the pool"
    assert not torch.equal(both, alone)
