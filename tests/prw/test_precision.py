"""Experts beside a 16-bit base: float32 where gradients are wanted, else the input's dtype."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import prw
from prw.kernels import choose
from prw.kernels.weight_cache import stacked
from prw.layers import routed_linear

WIDTH, RANK = 16, 8
LOW = [torch.bfloat16, torch.float16]
KERNELS = ["dense", "grouped"]


class Block(nn.Module):
    """Keys and values, without the attention around them."""

    def __init__(self):
        super().__init__()
        self.to_k, self.to_v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH, bias=False)

    def forward(self, hidden):
        return torch.cat([self.to_k(hidden), self.to_v(hidden)], -1)


def woven(wake, dtype=torch.bfloat16, experts=("a", "b", "c"), **settings):
    torch.manual_seed(3)
    model = nn.Sequential(Block()).eval().to(dtype)
    weave = prw.inject(model, rank=RANK, experts=list(experts), **settings)
    wake(weave)
    return model, weave


def frozen(weave):
    for parameter in weave.trainable_parameters():
        parameter.requires_grad_(False)


def watch_choice(monkeypatch, seen):
    """Note every case that a kernel is chosen for."""
    monkeypatch.setattr(
        routed_linear, "choose", lambda case, wanted: seen.append(case) or choose(case, wanted)
    )


def case_seen(monkeypatch, model, hidden):
    """What the kernel of a forward is chosen for."""
    seen = []
    watch_choice(monkeypatch, seen)
    model(hidden)
    (case,) = seen
    return case


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_experts_are_computed_in_the_inputs_dtype(wake, monkeypatch, dtype, mode):
    model, weave = woven(wake, dtype)
    with mode(), weave.record() as routing:
        case = case_seen(monkeypatch, model, torch.randn(2, 9, WIDTH, dtype=dtype))
    assert case.dtype == dtype
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    on_cuda = case._replace(device=torch.device("cuda"), experts=64, rank=RANK)
    assert choose(on_cuda).name == "grouped", "in float32 it would fall back to dense"
    assert {decision.logits.dtype for decision in routing.all()} == {torch.float32}


@pytest.mark.parametrize("dtype", LOW)
def test_with_gradients_they_stay_in_their_own(wake, monkeypatch, dtype):
    model, _ = woven(wake, dtype)
    assert case_seen(monkeypatch, model, torch.randn(2, 9, WIDTH, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_a_base_of_32_bits_or_more_gives_the_same_bits_with_and_without_gradients(wake, dtype, kernel):
    model, _ = woven(wake, dtype, kernel=kernel)
    hidden = torch.randn(2, 9, WIDTH, dtype=dtype)
    with torch.no_grad():
        without = model(hidden)
    assert torch.equal(model(hidden), without)


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("dtype", LOW)
def test_the_result_is_that_of_exact_arithmetic_up_to_rounding(wake, kernel, granularity, dtype):
    model, weave = woven(wake, dtype, kernel=kernel, granularity=granularity)
    hidden = torch.randn(4, 9, WIDTH, dtype=dtype)
    with torch.no_grad(), weave.record() as low:
        found = model(hidden)
        model.to(torch.float64)
    with torch.no_grad(), weave.record() as high:
        exact = model(hidden.double())
    assert found.dtype == dtype
    assert all(torch.equal(x.expert_ids, y.expert_ids) for x, y in zip(low.all(), high.all(), strict=True))
    error = (found.double() - exact).norm() / exact.norm()
    assert error < {torch.bfloat16: 6e-3, torch.float16: 8e-4}[dtype]


class Casts(TorchDispatchMode):
    """Counts the experts' float32 matrices that are cast or copied."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        ops = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}
        source = args[ops[function]] if function in ops else None
        self.count += source is not None and source.dtype == torch.float32 and RANK in source.shape
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("experts", [("a",), ("a", "b", "c")])
@pytest.mark.parametrize("way", ["inference", "autocast"])
def test_frozen_experts_are_cast_once_and_not_at_every_call(wake, kernel, experts, way):
    model, weave = woven(
        wake, torch.bfloat16 if way == "inference" else torch.float32, experts, kernel=kernel, gate="unit"
    )
    frozen(weave)
    hidden = torch.randn(2, 9, WIDTH).to(model[0].to_k.get_base_layer().weight.dtype)
    cast = torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext()
    with torch.no_grad(), cast:
        with Casts() as first:
            before = model(hidden)
        with Casts() as second:
            again = model(hidden)
    assert first.count == 4 * len(experts), "A and B of K and of V, each once"
    assert second.count == 0
    assert torch.equal(before, again)


@pytest.mark.parametrize("kernel", KERNELS)
def test_copies_of_two_dtypes_do_not_mix_and_follow_the_weights(wake, kernel):
    model, weave = woven(wake, kernel=kernel)
    fresh, other = woven(wake, kernel=kernel)
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.bfloat16)
    for factor in (1.0, -1.5, 0.5):
        for one in (weave, other):
            with torch.no_grad():
                for name, weight in one.model.named_parameters():
                    if ".prw_B" in name:
                        weight.mul_(factor)
        for grad in (True, False, True):  # experts in float32, in 16 bits, and in float32 again
            with torch.set_grad_enabled(grad):
                assert torch.equal(model(hidden), fresh(hidden))
    with torch.no_grad():
        assert not torch.equal(model(hidden), woven(wake, kernel=kernel)[0](hidden))


def test_a_weight_that_trained_uncounted_is_copied_anew_once_it_is_frozen():
    """DeepSpeed writes what a step gives into `.data`, which torch does not count."""
    weights = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2, 3))]
    weights[0].requires_grad_(False)
    stacked(weights, torch.bfloat16, True)
    stacked([weights[1]], torch.bfloat16, True)
    weights[1].data.copy_(torch.randn(2, 3))
    weights[1].requires_grad_(False)
    assert torch.equal(stacked([weights[1]], torch.bfloat16, True), weights[1].bfloat16())
    for grown in (weights, [*weights, nn.Parameter(torch.randn(2, 3))]):
        assert torch.equal(stacked(grown, torch.bfloat16, True), torch.cat(grown).bfloat16())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_checkpointing_computes_the_same_when_it_runs_a_forward_again(wake, reentrant, kernel):
    model, weave = woven(wake, kernel=kernel)
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone()))
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with set_checkpoint_early_stop(False):  # else the forward that runs again ends before its output
        output = checkpoint(model, hidden, use_reentrant=reentrant)
    output.float().square().sum().backward()
    first, again = outputs
    assert torch.equal(first, again)
    assert {parameter.grad.dtype for parameter in weave.trainable_parameters()} == {torch.float32}


@pytest.mark.parametrize("kernel", ["auto", "dense"])
def test_a_compiled_model_computes_in_the_same_dtype(wake, kernel):
    model, _ = woven(wake, kernel=kernel)
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        eager = model(hidden)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(hidden)
    assert compiled.dtype == torch.bfloat16
    assert torch.allclose(compiled.float(), eager.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_guarantees_hold_bit_for_bit(wake, tmp_path, kernel):
    torch.manual_seed(3)
    base = nn.Sequential(Block()).eval().to(torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = base(hidden)
        weave = prw.inject(base, rank=RANK, experts=["a", "b"], kernel=kernel)
        assert torch.equal(base(hidden), plain)
        wake(weave)
        two = base(hidden)
        weave.save_pretrained(tmp_path)
        weave.add_expert("c")
        for name, weight in base.named_parameters():
            if ".prw_B2" in name or ".prw_gate2" in name:
                weight.copy_(torch.randn(weight.shape))
        with weave.as_of("b"):
            assert torch.equal(base(hidden), two)
        with weave.disabled():
            assert torch.equal(base(hidden), plain)
        assert not torch.equal(base(hidden), two)
        weave.eject()
        assert torch.equal(base(hidden), plain)
        prw.load(base, tmp_path)
        assert torch.equal(base(hidden), two)


@pytest.mark.parametrize("kernel", ["auto", "reference", *KERNELS])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("width", [320, 1024])
def test_one_expert_is_the_same_whether_it_trains_is_frozen_or_was_loaded(
    wake, tmp_path, kernel, dtype, width
):
    """At such widths a product rounds differently if a matrix lies in memory in another order."""
    torch.manual_seed(width)
    plain = nn.Sequential(nn.ModuleDict({name: nn.Linear(width, width) for name in ("to_k", "to_v")}))
    plain = plain.to(dtype).eval()
    weave = prw.inject(copy.deepcopy(plain), rank=16, experts=["a"], kernel=kernel)
    wake(weave)
    weave.save_pretrained(tmp_path)
    inputs = [torch.randn(1, rows, width, dtype=dtype) for rows in (1, 5, 17, 64, 300)]

    def outputs(weave):
        with torch.no_grad():
            return [layer(hidden) for hidden in inputs for layer in weave.model[0].values()]

    training = outputs(weave)
    weave.freeze()
    frozen = outputs(weave)
    weave.add_expert("b")
    with weave.as_of("a"):
        recalled = outputs(weave)
    loaded = outputs(prw.load(copy.deepcopy(plain), tmp_path))
    for others in (frozen, recalled, loaded):
        assert all(map(torch.equal, others, training))


def test_the_summary_says_what_inference_takes(wake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    seen = []
    watch_choice(monkeypatch, seen)
    _, weave = woven(wake)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            weave.summary()
    assert [case.dtype for case in seen] == [torch.float32, torch.bfloat16]
