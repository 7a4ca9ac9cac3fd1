"""Pools in models, with every kernel: the base's bits at injection, and the reference's numbers later."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import prw
from prw.kernels import dispatch_plan, grouped

KERNELS = ("reference", "dense", "grouped")
WIDTH = 16


class Block(nn.Module):
    """Projections of several kinds, without the attention around them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "plain":
            self.to_k, self.to_v = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 20, bias=False)
        elif kind == "fused":
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        elif kind == "conv1d":
            self.c_attn = Conv1D(3 * WIDTH, WIDTH)
        else:
            self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, hidden):
        if self.kind == "plain":
            return torch.cat([self.to_k(hidden), self.to_v(hidden)], -1)
        if self.kind == "mha":
            return self.attn(hidden, hidden, hidden, need_weights=False)[0]
        return self.qkv(hidden) if self.kind == "fused" else self.c_attn(hidden)


KINDS = ("plain", "fused", "conv1d", "mha")


def woven(kind, kernel, wake=None, **settings):
    torch.manual_seed(5)
    model = nn.Sequential(Block(kind)).eval()
    target = {"conv1d": ["c_attn"]}.get(kind, "kv")
    sizes = {"rank": 3, **settings}
    weave = prw.inject(model, target=target, experts=["a", "b", "c"], kernel=kernel, **sizes)
    if wake is not None:
        wake(weave)
    return model, weave


def step(model, weave, hidden):
    hidden = hidden.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(hidden)
    output.square().sum().backward()
    return [output.detach(), hidden.grad, *(p.grad for p in weave.trainable_parameters())]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_injection_and_growth_change_no_bit(kind, kernel, granularity):
    torch.manual_seed(5)
    model = nn.Sequential(Block(kind)).eval()
    hidden = torch.randn(3, 7, WIDTH)
    with torch.no_grad():
        before = model(hidden)
        weave = prw.inject(
            model,
            target={"conv1d": ["c_attn"]}.get(kind, "kv"),
            rank=3,
            kernel=kernel,
            granularity=granularity,
        )
        for name in "abc":
            weave.add_expert(name)
            if kind == "mha":  # torch fuses the base's call, and no call with experts
                assert torch.allclose(model(hidden), before, atol=1e-6)
            else:
                assert torch.equal(model(hidden), before)


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"granularity": "sample"},
        {"top_k": 2},
        {"gate": "unit"},
        {"rank_pattern": {".*v": 5}, "granularity": "sample", "top_k": 2},
    ],
    ids=str,
)
def test_every_kernel_gives_what_the_reference_gives(wake, kind, kernel, settings):
    if kind != "plain":
        settings = {name: value for name, value in settings.items() if name != "rank_pattern"}
    for shape in ((3, 7, WIDTH), (1, 1, WIDTH), (0, 4, WIDTH)):
        hidden = torch.randn(*shape)
        if kind == "mha" and 0 in shape:
            continue
        got = step(*woven(kind, kernel, wake, **settings), hidden)
        wanted = step(*woven(kind, "reference", wake, **settings), hidden)
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"granularity": "sample"}, {"top_k": 2}, {"granularity": "sample", "top_k": 2}],
    ids=str,
)
def test_cudas_way_of_grouped_gives_a_pool_what_the_reference_gives(wake, monkeypatch, kind, settings):
    hidden, sizes = torch.randn(3, 7, WIDTH), {"rank": 8, **settings}
    wanted = step(*woven(kind, "reference", wake, **sizes), hidden)
    calls = []
    monkeypatch.setattr(dispatch_plan, "cpu", grouped)
    monkeypatch.setattr(grouped, "by_group", lambda *a, by=grouped.by_group: calls.append(a) or by(*a))
    got = step(*woven(kind, "grouped", wake, **sizes), hidden)
    assert calls
    assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["plain", "fused", "conv1d"])
def test_tokens_that_are_not_routed_keep_the_bases_bits(wake, kind, kernel):
    model, weave = woven(kind, kernel, wake)
    hidden, mask = torch.randn(2, 9, WIDTH), torch.rand(2, 9) < 0.5
    with torch.no_grad():
        with weave.disabled():
            base = model(hidden)
        with weave.route_only(mask):
            some = model(hidden)
        with weave.route_only(torch.zeros_like(mask)):
            none = model(hidden)
    assert torch.equal(none, base)
    assert torch.equal(some[~mask], base[~mask])
    assert not torch.equal(some[mask], base[mask])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["fused", "conv1d"])
def test_queries_keep_the_bases_bits(wake, kind, kernel):
    model, weave = woven(kind, kernel, wake)
    hidden = torch.randn(2, 9, WIDTH)
    with torch.no_grad():
        with weave.disabled():
            base = model(hidden)
        output = model(hidden)
    assert torch.equal(output[..., :WIDTH], base[..., :WIDTH])
    assert not torch.equal(output[..., WIDTH : 2 * WIDTH], base[..., WIDTH : 2 * WIDTH])
    assert not torch.equal(output[..., 2 * WIDTH :], base[..., 2 * WIDTH :])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_how_the_input_lies_in_memory_does_not_matter(wake, kernel, layout):
    model, weave = woven("plain", kernel, wake)
    hidden = {
        "sliced": lambda: torch.randn(2, 9, WIDTH)[:, 3:7],
        "transposed": lambda: torch.randn(9, 2, WIDTH).transpose(0, 1),
        "expanded": lambda: torch.randn(1, 9, WIDTH).expand(3, -1, -1),
    }[layout]()
    found = []
    for given in (hidden, hidden.contiguous()):
        leaf = given.detach().requires_grad_()
        model.zero_grad()
        output = model(leaf)
        output.square().sum().backward()
        found.append([output, *(p.grad.clone() for p in weave.trainable_parameters())])
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_what_trains_gets_a_gradient(wake, kernel):
    model, weave = woven("plain", kernel, wake)
    model(torch.randn(2, 9, WIDTH)).sum().backward()
    training = {id(parameter) for parameter in weave.trainable_parameters()}
    for path, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in training), path


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_autocast_gives_the_bases_dtype_and_gradients_in_the_experts(wake, kind, kernel):
    model, weave = woven(kind, kernel, wake)
    hidden = torch.randn(2, 9, WIDTH)
    exact = model(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(hidden)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), exact, atol=0.1, rtol=0.05)
    assert {parameter.grad.dtype for parameter in weave.trainable_parameters()} == {torch.float32}


@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_mode_and_no_grad_give_the_same_bits_and_training_goes_on(wake, kernel):
    model, weave = woven("plain", kernel, wake)
    hidden = torch.randn(2, 9, WIDTH)
    with torch.inference_mode():
        first = model(hidden).clone()
    with torch.no_grad():
        assert torch.equal(model(hidden), first)
    output = model(hidden)
    assert torch.equal(output, first)
    output.sum().backward()
    with torch.inference_mode():
        assert torch.equal(model(hidden), first)
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())
