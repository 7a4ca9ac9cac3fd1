"""Attention blocks found by structure: pairs, streams, weights that are read past, layers of two outputs."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    MambaConfig,
    MambaModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    WavLMConfig,
    WavLMModel,
)

import prw
from prw.tuner.targets import plan_pool


def planned(model: nn.Module) -> list[str]:
    return plan_pool(model, prw.PrwConfig()).config.target_modules


def held(block: nn.Module) -> nn.Module:
    model = nn.Module()
    model.attn = block
    return model


class ReadPast(nn.Module):
    """An attention that hands its weights to a function, as WavLM does."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        key = F.linear(hidden, self.k_proj.weight, self.k_proj.bias)
        value = F.linear(hidden, self.v_proj.weight, self.v_proj.bias)
        return torch.softmax(self.q_proj(hidden) @ key.transpose(-1, -2), -1) @ value


class Called(ReadPast):
    """One that calls them, and reads a weight's dtype beside."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.to(self.k_proj.weight.dtype)
        key, value = self.k_proj(hidden), self.v_proj(hidden)
        return torch.softmax(self.q_proj(hidden) @ key.transpose(-1, -2), -1) @ value


class CalledInALoop(ReadPast):
    """One that calls them by another name, and hands on a weight beside."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        key, value = (projection(hidden) for projection in (self.k_proj, self.v_proj))
        spread = self.k_proj.weight.std() + self.v_proj.weight.std()
        return torch.softmax(self.q_proj(hidden) @ key.transpose(-1, -2) * spread, -1) @ value


def wrapping(method):
    """A decorator as most are."""

    @functools.wraps(method)
    def around(*args, **kwargs):
        return method(*args, **kwargs)

    return around


def hiding(method):
    """A decorator that does not say what it is around."""
    return lambda *args: method(*args)


class Held:
    """A decorator that is an object, as that of functools.cache."""

    def __init__(self, method):
        functools.update_wrapper(self, method)

    def __call__(self, *args):
        return self.__wrapped__(*args)

    def __get__(self, holder, kind=None):
        return self if holder is None else functools.partial(self, holder)


DECORATORS = [wrapping, hiding, Held, lambda method: wrapping(hiding(method)), torch.no_grad()]
NAMES = ["wraps", "without wraps", "object", "twice", "torch.no_grad"]


@pytest.mark.parametrize("decorator", DECORATORS, ids=NAMES)
def test_a_decorated_method_is_read_as_what_is_decorated(decorator) -> None:
    class ReadPastDecorated(ReadPast):
        forward = decorator(ReadPast.forward)

    with pytest.raises(prw.TargetError, match=r"ReadPastDecorated computes with the weight of"):
        prw.inject(nn.ModuleDict({"attention": ReadPastDecorated()}), rank=2)


@pytest.mark.parametrize("decorator", DECORATORS, ids=NAMES)
def test_a_decorated_forward_that_calls_a_projection_counts_beside_a_method_that_reads_its_weight(
    decorator,
) -> None:
    class CalledDecorated(Called):
        forward = decorator(Called.forward)

        def spread(self) -> torch.Tensor:
            return self.k_proj.weight.std() + self.v_proj.weight.std()

    weave = prw.inject(nn.ModuleDict({"attention": CalledDecorated()}), rank=2)
    assert [site.name for site in weave.sites] == ["attention"]


def test_projections_that_are_called_by_another_name_get_experts() -> None:
    weave = prw.inject(nn.ModuleDict({"attention": CalledInALoop()}), rank=2)
    assert [site.name for site in weave.sites] == ["attention"]


@pytest.mark.parametrize("target", ["kv", ["k_proj", "v_proj"]])
def test_projections_that_are_never_called_are_refused(target) -> None:
    model = nn.ModuleDict({"attention": ReadPast()})
    with pytest.raises(prw.TargetError, match=r"computes with the weight of attention\.k_proj and"):
        prw.inject(model, target=target, rank=2)
    both = nn.ModuleDict({"attention": ReadPast(), "other": Called()})
    assert [site.name for site in prw.inject(both, rank=2).sites] == ["other"]


def test_a_block_that_calls_values_only_is_refused_and_not_given_half_a_site() -> None:
    class KeysReadPast(Called):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return F.linear(hidden, self.k_proj.weight) + self.v_proj(hidden)

    model = nn.ModuleDict({"attention": KeysReadPast(), "other": Called()})
    with pytest.raises(prw.TargetError, match=r"computes with the weight of attention\.k_proj and"):
        prw.inject(model, rank=2)
    weave = prw.inject(model, target=["attention.v_proj", "other.k_proj", "other.v_proj"], rank=2)
    assert [site.name for site in weave.sites] == ["attention.v_proj", "other"]


def test_wavlm_says_why_it_cannot_have_experts() -> None:
    config = WavLMConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        conv_dim=(8,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    with pytest.raises(prw.TargetError, match="WavLMAttention computes with the weight of"):
        prw.inject(WavLMModel(config), rank=2)


def test_keys_and_values_with_a_gate_behind_are_found(wake) -> None:
    config = Qwen3NextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        num_experts=2,
        num_experts_per_tok=1,
        layer_types=["linear_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(config).eval()
    fused = model.model.layers[0].linear_attn.in_proj_qkvz
    hidden = torch.randn(2, 5, 16)
    before = fused(hidden).unflatten(-1, (2, -1))
    weave = prw.inject(model, rank=2, experts=["a"])
    assert len(weave.sites) == 2
    wake(weave)
    model.eval()
    after = model.model.layers[0].linear_attn.in_proj_qkvz(hidden).unflatten(-1, (2, -1))
    changed = (before != after).any(dim=0).any(dim=0).all(dim=0)
    # per key head: a query of 4, a key of 4, two values of 4, and their two gates
    assert changed.tolist() == [False] * 4 + [True] * 12 + [False] * 8


def test_a_model_without_attention_is_shown_a_call_that_works() -> None:
    model = MambaModel(MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1))
    with pytest.raises(prw.TargetError) as refused:
        prw.inject(model, rank=2)
    name = str(refused.value).split("target=['")[1].split("'")[0]
    prw.inject(model, target=[name], rank=2)


def test_a_wrapper_lends_its_name_and_a_missing_value_projection_makes_keys_the_values():
    block = nn.Module()
    for name in ("k_proj", "v_proj"):
        wrapper = nn.Module()
        wrapper.linear = nn.Linear(4, 4)
        block.add_module(name, wrapper)
    assert planned(held(block)) == ["attn.k_proj.linear", "attn.v_proj.linear"]
    shared = nn.Module()
    shared.k_proj, shared.v_proj = nn.Linear(4, 4), None
    assert planned(held(shared)) == ["attn.k_proj"]


def test_the_key_and_value_of_a_feed_forward_are_no_attention():
    block = nn.Module()
    block.key, block.value = nn.Linear(4, 16), nn.Linear(16, 4)
    with pytest.raises(prw.TargetError, match="no attention block"):
        prw.inject(held(block))
