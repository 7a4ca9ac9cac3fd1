"""What the experts cost: nothing for frozen ones, no more for many than for few, and little that is kept."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import prw
from tests.prw.kernels.problems import WAYS, Problem, Projection, outputs, problem

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_grouped_mm")


class Watch(TorchDispatchMode):
    """Note every operation with the shapes of what it makes."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        self.made += [
            (name, tuple(x.shape)) for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x)
        ]
        return out

    def products(self):
        return Counter(shape for name, shape in self.made if name in PRODUCTS)


def work_of(experts, way, rank=8, trains=None, tokens=64, wide=32):
    """FLOPs and wide products of a forward and backward in which experts 0 and 1 are chosen."""
    made = problem(1, items=tokens, ranks=(rank,) * experts, wide=wide, outs=(wide,), base="none", k=0)
    for expert, pair in enumerate(zip(*made.projections[0][:2], strict=True)):
        for weight in pair:
            weight.requires_grad_(expert == (experts - 1 if trains is None else trains))
    made.ids = torch.arange(tokens) % 2
    with FlopCounterMode(display=False) as counted, Watch() as watched:
        (output,) = outputs(made, way)
        output.backward(made.seeds[0])
    return counted.get_total_flops(), watched


@pytest.mark.parametrize("tokens_per_item", [1, 4])
def test_sorted_experts_cost_the_same_whatever_their_number(tokens_per_item):
    found = [work_of(experts, "grouped", trains=1)[0] for experts in (2, 8, 64)]
    assert found[0] == found[1] == found[2] > 0


def test_the_flops_are_the_ones_of_the_formula():
    """Four narrow products: in and out, and back; and two for what trains, which has half the rows."""
    flops, _ = work_of(64, "grouped", trains=1)
    narrow = 2 * 64 * 8 * 32
    assert flops == 4 * narrow + 2 * narrow // 2


@pytest.mark.parametrize("way", ["dense", "grouped"])
def test_frozen_experts_cost_no_weight_gradient_and_get_none(way):
    made = problem(1, items=32, ranks=(3,) * 5, wide=16, outs=(16,), base="none", k=0, trains=0b10000)
    made.ids = torch.arange(32) % 5
    (output,) = outputs(made, way)
    with Watch() as watched:
        output.backward(made.seeds[0])
    part = made.projections[0]
    assert all(weight.grad is None for weight in (*part.downs[:4], *part.ups[:4]))
    assert part.downs[4].grad.any()
    assert part.ups[4].grad.any()
    assert watched.products()[(3, 16)] == 2, "of A and of B of the expert that trains, no others"
    assert not {(15, 16), (16, 15)} & set(watched.products())


@pytest.mark.parametrize("way", ["reference", *WAYS])
def test_an_expert_that_trains_and_nobody_chose_gets_zeros_not_nothing(way):
    """Data-parallel training waits for a gradient of everything that trains."""
    made = problem(0, items=8, ranks=(4, 4, 4), wide=8, outs=(8, 8)).to(torch.float32)
    made.ids[:] = 1
    sum(output.sum() for output in outputs(made, way)).backward()
    for part in made.projections:
        assert all(not weights[at].grad.any() for weights in (part.downs, part.ups) for at in (0, 2))
        assert part.downs[1].grad.any()


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
def test_veterans_are_not_copied_again(make_plain, wake, kernel):
    """After the first forward nothing is made of the size of all experts side by side, or of a veteran."""
    model = make_plain(width=24, blocks=1)
    weave = prw.inject(model, rank=3, experts=["a", "b", "c", "d"], kernel=kernel)
    wake(weave)
    hidden = torch.randn(2, 37, 24)
    model(hidden).sum().backward()
    with Watch() as watched:
        model(hidden).sum().backward()
    views = ("t", "transpose", "slice", "alias", "detach", "view", "unsqueeze", "split", "permute")
    made = Counter(shape for name, shape in watched.made if name not in views)
    sizes = {(12, 24), (24, 12), (9, 24), (24, 9), (4, 3, 24)}
    assert not sizes & set(made)
    # one expert's: the newest's gradients and, where stacks are kept, its copy
    copies = Counter(name for name, shape in watched.made if shape == (3, 24) and "copy" in name)
    assert sum(copies.values()) <= (8 if kernel == "dense" else 0)


def saved_bytes(run):
    """Count what autograd keeps, each memory once, without parameters."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not (
            tensor._base is not None and isinstance(tensor._base, torch.nn.Parameter)
        ):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    return kept, output


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
@pytest.mark.parametrize("experts", [1, 16])
def test_kept_for_backward_are_the_input_and_narrow_rows(kernel, experts):
    tokens, wide, out, rank = 512, 64, 96, 4
    hidden = torch.randn(tokens, wide, requires_grad=True)
    parts = [
        Projection(
            [torch.nn.Parameter(torch.randn(rank, wide)) for _ in range(experts)],
            [torch.nn.Parameter(torch.randn(out, rank)) for _ in range(experts)],
            2.0,
            torch.nn.Parameter(torch.randn(out, wide), requires_grad=False),
        )
        for _ in range(2)
    ]
    ids, weights = torch.randint(-1, experts, (tokens,)), torch.rand(tokens, requires_grad=True)
    kept, _ = saved_bytes(lambda: outputs(Problem(hidden, parts, ids, weights), kernel))
    narrow = 2 * (rank + 1)  # per token: rows in rank space and gates, of K and of V
    assert sum(size for size, _ in kept.values()) <= 4 * tokens * (wide + narrow) + 1024
    assert not [shape for _, shape in kept.values() if out in shape and tokens in shape]


@pytest.mark.parametrize("kernel", ["dense", "grouped"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_site_keeps_its_input_once_and_no_wide_output(wake, kernel, fused):
    """Beside the base alone: for K and V together one input, rows in rank space, gates and the router's."""
    width, tokens, rank = 64, 256, 4

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if fused:
                self.qkv = torch.nn.Linear(width, 3 * width)
            else:
                self.to_k, self.to_v = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

        def forward(self, hidden):
            return self.qkv(hidden) if fused else (self.to_k(hidden), self.to_v(hidden))

    model = torch.nn.Sequential(Attention()).requires_grad_(False)
    weave = prw.inject(model, rank=rank, experts=[f"e{index}" for index in range(8)], kernel=kernel)
    wake(weave)
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    kept, _ = saved_bytes(lambda: model.eval()(hidden))
    total = sum(size for size, _ in kept.values())
    router = 8 * 4  # logits, probabilities and places of eight experts, at most
    assert total <= 4 * tokens * (width + 2 * (rank + 1) + router) + 8192
    wide = [shape for size, shape in kept.values() if size >= 4 * tokens * width]
    assert [shape[-2:] for shape in wide] == [(tokens, width)], "the input"


@pytest.mark.parametrize("autocast", [False, True])
def test_key_and_value_copy_a_strided_input_once(wake, make_plain, autocast):
    """And cast it once: with the router's features, two of its size are kept, whatever it is cast to."""
    model = make_plain(width=64, blocks=1).requires_grad_(False)
    wake(prw.inject(model, rank=4, experts=["a", "b"]))
    hidden = torch.randn(2, 80, 64, requires_grad=True)[:, 8:72]
    block = model.eval().blocks[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept, _ = saved_bytes(lambda: (block.to_k(hidden), block.to_v(hidden)))
    wide = [size for size, shape in kept.values() if shape[-1] == 64 and size >= 2 * 64 * 64 * 2]
    assert len(wide) == 2


def test_the_base_is_multiplied_once():
    made = problem(1, items=16, ranks=(3, 3), wide=20, outs=(24,), k=0)
    with Watch() as watched:
        outputs(made, "grouped")
    wide = [shape for shape in watched.products().elements() if shape == (16, 24)]
    assert len(wide) == 1
