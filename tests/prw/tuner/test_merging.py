"""Merging is exact where no weight depends on the input, and refused with the reason elsewhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import prw


def close(got, wanted):
    return torch.allclose(got, wanted, atol=1e-5, rtol=1e-5)


def merged_and_unmerged(host, weave, **options):
    """The model's outputs after and before merging, which did something and left no layer of ours."""
    with weave.disabled():
        base = host()
    unmerged = host()
    assert not close(base, unmerged)
    modules = {name for name, module in host.model.named_modules() if hasattr(module, "base_layer")}
    weave.merge(**options)
    assert modules
    assert not any(hasattr(module, "base_layer") for module in host.model.modules())
    return host(), unmerged


@pytest.mark.parametrize("gate", ["prob", "unit"])
def test_a_pool_of_one_is_merged_exactly(host, wake, gate):
    weave = prw.inject(host.model, rank=4, alpha=6.0, experts=["a"], gate=gate)
    wake(weave)
    got, wanted = merged_and_unmerged(host, weave)
    assert close(got, wanted)
    with pytest.raises(prw.PoolError, match="ejected"):
        weave.summary()


def test_the_pool_as_of_its_first_expert_is_merged_exactly(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a", "b", "c"])
    wake(weave)
    with weave.as_of("a"):
        wanted = host()
    weave.merge(as_of="a")
    assert close(host(), wanted)


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 5), st.booleans())
def test_experts_that_always_act_are_merged_exactly(size, spare, rank, patterned):
    torch.manual_seed(size)
    model = nn.ModuleDict({"to_k": nn.Linear(6, 4), "to_v": nn.Linear(6, 5)}).double().eval()
    weave = prw.inject(
        model,
        rank=rank,
        experts=[str(index) for index in range(size)],
        gate="unit",
        top_k=size + spare,
        rank_pattern={"to_v": 2} if patterned else None,
    )
    for name, parameter in model.named_parameters():
        if ".prw_" in name:
            nn.init.normal_(parameter)
    hidden = torch.randn(2, 3, 6, dtype=torch.float64)
    wanted = [model["to_k"](hidden), model["to_v"](hidden)]
    weave.merge()
    assert all(type(layer) is nn.Linear for layer in model.values())
    assert all(
        torch.allclose(model[name](hidden), want, atol=1e-9)
        for name, want in zip(("to_k", "to_v"), wanted, strict=True)
    )


def test_the_strength_that_diffusers_sets_is_merged_too(make_host, wake):
    host = make_host("flux")
    host.model.eval()
    weave = prw.inject(host.model, rank=4, experts=["a"])
    wake(weave)
    host.model.set_adapters("default", 0.5)
    got, wanted = merged_and_unmerged(host, weave)
    assert close(got, wanted)


def tied(model):
    model.blocks[1].to_q.weight = model.blocks[0].to_k.weight


@pytest.mark.parametrize(
    ("prepare", "settings", "match"),
    [
        (None, {"experts": ["a", "b"]}, r"router chooses 1 of them by the input.*as_of='a'.*export_lora"),
        (None, {"experts": ["a", "b"], "gate": "unit"}, "chooses 1 of them by the input"),
        (None, {"experts": ["a", "b", "c"], "gate": "unit", "top_k": 2}, "chooses 2 of them by the input"),
        (None, {"experts": ["a", "b"], "top_k": 2}, "gate='prob'.*how much each of them counts"),
        (lambda m: m.bfloat16(), {"experts": ["a"]}, r"torch.bfloat16 on cpu.*model.float\(\)"),
        (tied, {"experts": ["a"]}, "shared with another module"),
    ],
)
def test_what_is_not_exact_is_refused_and_changes_nothing(make_plain, prepare, settings, match):
    base = make_plain()
    if prepare is not None:
        prepare(base)
    weave = prw.inject(base, rank=2, **settings)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    with pytest.raises(prw.UnsupportedError, match=f"(?s){match}"):
        weave.merge()
    assert weave.experts == tuple(settings["experts"])
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


class Quantised(nn.Linear):
    """Stands for any Linear that keeps its weight in another form."""


def test_a_base_that_is_no_plain_linear_is_refused(make_plain):
    base = make_plain()
    base.blocks[0].to_k = Quantised(8, 8)
    weave = prw.inject(base, rank=2, experts=["a"])
    with pytest.raises(prw.UnsupportedError, match=r"blocks.0.to_k cannot .*Quantised.*plain nn.Linear"):
        weave.merge()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_another_adapter_on_the_same_projection_is_refused(make_plain, first):
    base = make_plain()
    if first:
        inject_adapter_in_model(LoraConfig(target_modules=["to_k"]), base, "lora")
    weave = prw.inject(base, rank=2, experts=["a"])
    if not first:
        inject_adapter_in_model(LoraConfig(target_modules=["to_k"]), base, "lora")
    with pytest.raises(prw.UnsupportedError, match=r"another adapter.*merge it first"):
        weave.merge()


def test_an_empty_pool_a_wrapped_model_and_a_pool_switched_off_are_refused(make_plain, make_host):
    weave = prw.inject(make_plain(), rank=2)
    with pytest.raises(prw.PoolError, match="add_expert"):
        weave.merge()
    wrapped = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"]))
    with pytest.raises(prw.UnsupportedError, match="merge_and_unload"):
        prw.Weave(wrapped).merge()
    with pytest.raises(prw.UnsupportedError, match=r"prw.Weave\(model\).merge\(\)"):
        wrapped.merge_adapter()
    host = make_host("flux")
    weave = prw.inject(host.model, rank=2, experts=["a"])
    host.model.disable_adapters()
    with pytest.raises(prw.PoolError, match="switched off"):
        weave.merge()


def test_a_peft_model_with_constant_weights_is_merged_and_unloaded(make_host, wake):
    for options in ({"experts": ["a"]}, {"experts": ["a", "b"], "gate": "unit", "top_k": 2}):
        host = make_host("llama")
        model = get_peft_model(
            host.model.eval(), prw.PrwConfig(rank=2, modules_to_save=["lm_head"], **options)
        )
        wake(prw.Weave(model))
        with torch.no_grad():
            model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2.0)
        wanted = host.read(model.eval()(**host.inputs))
        merged = model.merge_and_unload()
        assert close(host.read(merged(**host.inputs)), wanted)
        assert merged is host.model
        assert not any(hasattr(module, "base_layer") for module in merged.modules())
        assert not hasattr(merged, "peft_config")


def test_two_pools_of_a_peft_model_are_merged_together(make_plain, wake):
    model = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"])).eval()
    model.add_adapter("second", prw.PrwConfig(rank=3, experts=["x"], target_modules=["to_q", "to_k"]))
    for name in ("default", "second"):
        wake(prw.Weave(model, name))
    hidden = torch.randn(2, 5, 8)
    model.base_model.set_adapter(["default", "second"])
    wanted = model(hidden)
    assert close(model.merge_and_unload()(hidden), wanted)


def test_only_the_named_pool_of_a_peft_model_is_merged(make_plain, wake):
    model = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"])).eval()
    model.add_adapter("second", prw.PrwConfig(rank=3, experts=["x"]))
    for name in ("default", "second"):
        wake(prw.Weave(model, name))
    hidden = torch.randn(2, 5, 8)
    model.set_adapter("second")
    wanted = model(hidden)
    assert close(model.merge_and_unload(adapter_names=["second"])(hidden), wanted)


def test_a_peft_model_that_cannot_be_merged_is_left_as_it_was(make_plain, wake):
    model = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a", "b"])).eval()
    wake(prw.Weave(model))
    hidden = torch.randn(2, 5, 8)
    before = model(hidden)
    with pytest.raises(prw.UnsupportedError, match="its router chooses"):
        model.merge_and_unload()
    assert torch.equal(model(hidden), before)


def test_a_safe_merge_refuses_what_is_not_finite(make_plain, wake):
    model = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"])).eval()
    wake(prw.Weave(model))
    with torch.no_grad():
        model.base_model.model.blocks[1].to_v.prw_B0["default"].weight[0, 0] = float("nan")
    before = model.base_model.model.blocks[0].to_k.base_layer.weight.clone()
    with pytest.raises(prw.PoolError, match="not be finite"):
        model.merge_and_unload(safe_merge=True)
    assert torch.equal(model.base_model.model.blocks[0].to_k.base_layer.weight, before)


def test_what_trained_in_the_base_before_trains_again(make_plain):
    base = make_plain()
    base.blocks[0].to_q.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in base.named_parameters()}
    prw.inject(base, rank=2, experts=["a"]).merge()
    assert {name: p.requires_grad for name, p in base.named_parameters()} == flags


def gpt2(dtype=torch.float32):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).eval().to(dtype)


def test_a_pool_on_conv1d_is_merged_by_the_transpose(wake):
    model, tokens = gpt2(torch.float64), torch.randint(40, (2, 7))
    weave = prw.inject(model, rank=4, experts=["a"])
    wake(weave)
    base = model.transformer.h[0].attn.c_attn.base_layer
    before = base.weight.detach().clone()
    with weave.disabled():
        plain = model(tokens).logits
    unmerged = model(tokens).logits
    weave.merge()
    merged = model(tokens).logits
    assert not torch.allclose(plain, unmerged, atol=1e-3)
    assert torch.allclose(merged, unmerged, atol=1e-6), "to the rounding of experts in float32"
    assert model.transformer.h[0].attn.c_attn is base
    assert torch.equal(base.weight[:, :16], before[:, :16]), "the rows of the query keep their bits"
    assert not torch.equal(base.weight[:, 16:], before[:, 16:])
