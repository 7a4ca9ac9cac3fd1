"""Any number of LoRAs beside a pool, in any order, in stock pipelines of diffusers."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
)
from hypothesis import given, settings

import prw
from tests.prw.conftest import flux
from tests.prw.hosts.lora_orders import STEPS, Orders, lora_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning"),  # of layers that a LoRA has left
]
DOUBLE = "transformer_blocks.0.attn."
SINGLE = "single_transformer_blocks.0.attn."


def stock_flux():
    nothing = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=flux().model.eval(), **nothing
    )


def stock_klein():
    model = Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    nothing = dict.fromkeys(["vae", "text_encoder", "tokenizer"])
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=model.eval(), **nothing
    )


FAMILIES = {
    "flux1": (stock_flux, [SINGLE + "to_q", SINGLE + "to_k", SINGLE + "to_v"]),
    "klein": (stock_klein, [SINGLE + "to_qkv_mlp_proj"]),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    make, single = FAMILIES[request.param]
    covered = {
        "a": [DOUBLE + "to_q", DOUBLE + "to_k", DOUBLE + "to_v", *single],
        "b": [DOUBLE + "to_k"],
        "c": [DOUBLE + "to_v", "x_embedder"],
    }
    return make(), covered


def add_pool(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        weave = prw.inject(model, rank=2, experts=["one", "two"])
        for name, parameter in model.named_parameters():
            if ".prw_B" in name or ".prw_g" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return weave


def fresh(family):
    pipe, covered = family
    parts = {**pipe.components, "transformer": copy.deepcopy(pipe.transformer)}
    return Orders(type(pipe)(**parts), add_pool, covered, pool_is_named=True)


@settings(max_examples=15)
@given(steps=STEPS)
def test_loras_and_pool_come_and_go(family, steps):
    orders = fresh(family)
    for step in steps:
        orders.take(step)


ORDERS = {
    "two after the pool": [("pool", None), ("lora", "a"), ("lora", "b")],
    "again after the first was deleted": [("pool", None), ("lora", "a"), ("lora", "a"), ("lora", "b")],
    "one before and one after": [("lora", "a"), ("pool", None), ("lora", "b"), ("lora", "c")],
    "one with the pool fused": [("lora", "a"), ("pool", None), ("fuse", 0.5), ("lora", "b"), ("fuse", 1.0)],
    "after the pool is gone": [
        ("pool", None),
        ("lora", "a"),
        ("pool", None),
        ("lora", "b"),
        ("unload", None),
    ],
}


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_known_orders(family, steps):
    orders = fresh(family)
    for step in steps:
        orders.take(step)


def test_loras_without_a_name_each_get_one(family):
    orders = fresh(family)
    orders.take(("pool", None))
    for _ in range(3):  # the first layer that diffusers meets is the pool's, and later a LoRA's
        orders.pipe.load_lora_weights(dict(orders.loras["a"]))
    assert sorted(orders.model.peft_config) == ["default", "default_0", "default_1", "default_2"]


def test_a_pool_by_the_hosts_own_call_lies_inside_the_loras_too(family):
    orders = fresh(family)
    orders.take(("lora", "a"))
    with pytest.warns(UserWarning, match="set_adapter"):
        orders.model.add_adapter(prw.PrwConfig(rank=2, experts=["one"]), "pool")
    orders.weave = prw.Weave(orders.model, "pool")
    orders.pool = dict.fromkeys(orders.pool, torch.zeros(()))
    for step in [("lora", "b"), ("lora", "a"), ("lora", "c"), ("lora", "a")]:
        orders.take(step)


def test_a_lora_is_swapped_in_place(family):
    orders = fresh(family)
    orders.take(("pool", None))
    orders.take(("lora", "a"))
    orders.loras["a"] = lora_of(orders.model, list(family[1]["a"]), seed=9)
    orders.pipe.load_lora_weights(dict(orders.loras["a"]), adapter_name="a", hotswap=True)
    orders.settle()
    orders.check()


def test_a_lora_moves_to_a_device_and_the_pool_is_named_in_vain(family):
    orders = fresh(family)
    orders.take(("pool", None))
    orders.take(("lora", "a"))
    orders.pipe.set_lora_device(["a"], "meta")
    moved = {parameter.is_meta for name, parameter in orders.model.named_parameters() if ".lora_A." in name}
    stayed = {parameter.is_meta for name, parameter in orders.model.named_parameters() if ".prw_" in name}
    assert moved == {True} and stayed == {False}
    with pytest.raises(prw.UnsupportedError, match="'default' is a pool of experts"):
        orders.pipe.set_lora_device(["default"], "cpu")
    assert not hasattr(orders.model.get_submodule(DOUBLE + "add_k_proj"), "lora_A")


def test_fusing_all_that_is_active_names_the_pool_and_can_be_undone(family):
    orders = fresh(family)
    for step in [("pool", None), ("lora", "a")]:
        orders.take(step)
    with pytest.raises(prw.UnsupportedError, match=r"fuse_lora\(adapter_names="):
        orders.pipe.fuse_lora()
    orders.pipe.unfuse_lora()
    orders.settle()
    orders.check()


def test_the_state_has_its_usual_names_for_everybody_else(family):
    orders = fresh(family)
    for step in [("pool", None), ("lora", "a")]:
        orders.take(step)
    state = orders.model.state_dict()
    assert f"{DOUBLE}to_k.base_layer.base_layer.weight" in state
    assert f"{DOUBLE}to_k.base_layer.weight" not in state
    assert orders.model.load_state_dict(state, strict=True)
