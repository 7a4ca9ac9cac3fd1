"""What only a GPU can show: the kernels as they run there, without waiting for it, and in a CUDA graph."""

from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from prw.kernels import triton as backend
from tests.prw.kernels.triton.interpreted.problems import draw, expanded, shrunk

SIZES = {
    "flux": {"items": 1024, "ranks": (128,) * 8, "wide": 3072, "out": 3072},
    "odd": {
        "items": 777,
        "ranks": (5, 64, 1),
        "wide": 515,
        "out": 33,
        "slots": 2,
        "routing": "half unrouted",
    },
    "samples": {"items": 3, "ranks": (16, 16), "wide": 256, "out": 256, "tokens_per_item": 300},
    "nothing": {"items": 0},
    "one": {"items": 1, "ranks": (1,), "wide": 1, "out": 1},
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def on_gpu(problem):
    moved = {name: getattr(problem, name).cuda() for name in ("ids", "weights", "hidden")}
    stacks = {name: [m.cuda() for m in getattr(problem, name)] for name in ("downs", "ups")}
    return replace(problem, **moved, **stacks)


def products(problem):
    plan = backend.plan(problem.ids, problem.experts, problem.tokens_per_item)
    lows = backend.shrink(plan, problem.hidden, [problem.downs, problem.downs])
    out = backend.expand(plan, lows[:1], [problem.transposed_ups])
    of_hidden = backend.expand(plan, lows, [problem.downs, problem.downs])
    gradient = backend.weight_gradient(plan, lows[0], problem.hidden, 0, len(problem.downs[0]))
    weights = plan.per_item(plan.per_choice(problem.weights))
    return *lows, out, of_hidden, gradient, weights


def close(got, wanted, tolerance):
    return (got.cpu().double() - wanted).norm() <= tolerance * (1e-3 + wanted.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_products_equal_loops(sizes, dtype):
    problem = draw(dtype=dtype, **sizes)
    low, again, out, of_hidden, *_ = products(on_gpu(problem))
    rounded, stacks = low.cpu(), [problem.downs, problem.downs]
    assert torch.equal(low, again)
    assert close(low, shrunk(problem, problem.downs), TOLERANCE[dtype])
    wanted = expanded(problem, [rounded], [problem.transposed_ups])
    assert close(out, wanted, TOLERANCE[dtype])
    assert close(of_hidden, expanded(problem, [rounded, rounded], stacks, None), TOLERANCE[dtype])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_same_input_gives_the_same_bits(sizes):
    problem = on_gpu(draw(dtype=torch.bfloat16, **sizes))
    assert all(torch.equal(x, y) for x, y in zip(products(problem), products(problem), strict=True))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_nothing_waits_for_the_device(sizes):
    problem = on_gpu(draw(**sizes))
    products(problem)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        products(problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "sizes", [SIZES["flux"], SIZES["odd"], SIZES["samples"]], ids=["flux", "odd", "samples"]
)
def test_a_captured_graph_follows_other_decisions_and_weights(sizes):
    problem, other = on_gpu(draw(**sizes)), on_gpu(draw(**sizes, seed=1))
    products(problem)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = products(problem)
    problem.ids.copy_(other.ids)
    for own, new in zip(problem.downs + problem.ups, other.downs + other.ups, strict=True):
        own.copy_(new)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, products(problem), strict=True))
