"""One routed projection with its decision given: random tensors on the device, and everything run on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.schema import At, Routing
from benchmarks.measuring import Case
from benchmarks.points import SCALE
from benchmarks.schema import Pass
from prw.kernels import Case as KernelCase
from prw.kernels import choose, expand, make_plan, reference, shrink
from prw.precision import experts_dtype

BLOBS = 16
"""How many runs of neighbours a coherent routing has."""


@dataclass(frozen=True)
class Problem:
    """Tensors of one routed key and value projection.

    Attributes:
        at: Sizes.
        hidden: Input [T, d], a leaf that requires grad, as inside a network whose earlier blocks train.
        bases: Weight [d, d] and bias [d] of K and of V, frozen.
        downs: For K and for V, A [r, d] of every expert; the newest trains.
        ups: For K and for V, B [d, r] of every expert; the newest trains.
        ids: Expert of each item, int64; -1 is none.
        gates: Weight of each item, requires grad.
        grads: Gradients of K and V.
    """

    at: At
    hidden: Tensor
    bases: tuple[tuple[Tensor, Tensor], ...]
    downs: tuple[tuple[Tensor, ...], ...]
    ups: tuple[tuple[Tensor, ...], ...]
    ids: Tensor
    gates: Tensor
    grads: tuple[Tensor, ...]

    @property
    def tokens_per_item(self) -> int:
        """How many rows an item stands for."""
        return self.at.tokens // len(self.ids)

    def routed(self, kernel: str) -> tuple[Tensor, ...]:
        """Compute K and V by a kernel."""
        bases = [F.linear(self.hidden, weight, bias) for weight, bias in self.bases]
        return with_experts(
            self.hidden, bases, self.downs, self.ups, self.ids, self.gates, kernel, self.tokens_per_item
        )

    def plain(self) -> tuple[Tensor, ...]:
        """Compute K and V without experts."""
        return tuple(F.linear(self.hidden, weight, bias) for weight, bias in self.bases)

    def leaves(self) -> dict[str, Tensor]:
        """Name what gets gradients."""
        found = {"hidden": self.hidden, "gates": self.gates}
        for name, downs, ups in zip("kv", self.downs, self.ups, strict=True):
            found |= {f"down_{name}": downs[-1], f"up_{name}": ups[-1]}
        return found

    def to(self, dtype: torch.dtype) -> Problem:
        """Give the same numbers in another dtype; of a wider one, they are exactly these."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        return Problem(
            self.at.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
            cast(self.hidden),
            tuple((cast(weight), cast(bias)) for weight, bias in self.bases),
            tuple(tuple(cast(down) for down in stack) for stack in self.downs),
            tuple(tuple(cast(up) for up in stack) for stack in self.ups),
            self.ids.clone(),
            cast(self.gates),
            tuple(cast(grad) for grad in self.grads),
        )


def with_experts(
    hidden: Tensor,
    bases: Sequence[Tensor],
    downs: Sequence[Sequence[Tensor]],
    ups: Sequence[Sequence[Tensor]],
    ids: Tensor,
    gates: Tensor,
    kernel: str,
    tokens_per_item: int = 1,
) -> tuple[Tensor, ...]:
    """Add the experts to outputs of the base as a wrapped projection does: in place, with one dispatch plan.

    Args:
        hidden: Input [T, d].
        bases: Outputs of the base [T, d], which are added to.
        downs: For each, A [r, d] of every expert.
        ups: For each, B [d, r] of every expert.
        ids: Expert of each item, int64; -1 is none.
        gates: Gate of each item.
        kernel: Name of a kernel.
        tokens_per_item: How many rows an item stands for.
    """
    experts, dtype = len(downs[0]), experts_dtype(downs[0][0], hidden)
    case = KernelCase(hidden.device, dtype, experts, downs[0][0].shape[0], 1, tokens_per_item)
    name = choose(case, kernel).name
    if name == "reference":
        ids, gates = (of_items.repeat_interleave(tokens_per_item, 0) for of_items in (ids, gates))
        deltas = [reference(hidden, down, up, ids, gates, SCALE) for down, up in zip(downs, ups, strict=True)]
        return tuple((base + delta).to(base.dtype) for base, delta in zip(bases, deltas, strict=True))
    plan, read = make_plan(name, ids.unsqueeze(-1), experts, tokens_per_item), hidden.detach().to(dtype)
    return tuple(
        expand(base, shrink(hidden, [down], plan, read)[0], gates.unsqueeze(-1), up, SCALE, plan)
        for base, down, up in zip(bases, downs, ups, strict=True)
    )


def problem(at: At, device: torch.device, seed: int = 0, unrouted: float = 0.0) -> Problem:
    """Draw a problem on a device; random data, since zeros run faster.

    Args:
        at: Sizes, routing and dtype.
        device: Where.
        seed: Of everything.
        unrouted: Share of the items that go to no expert.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype: torch.dtype = getattr(torch, at.dtype)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    width, newest = at.width, at.experts - 1
    ids = ids_of(at, seed).to(device)
    if unrouted:
        missing = torch.rand(ids.shape, generator=generator, device=device) < unrouted
        ids = torch.where(missing, -1, ids)
    down, up = width**-0.5, 0.3 * max(at.rank, 1) ** -0.5
    return Problem(
        at,
        draw(at.tokens, width).requires_grad_(),
        tuple((draw(width, width, scale=down), draw(width)) for _ in range(2)),
        tuple(
            tuple(draw(at.rank, width, scale=down).requires_grad_(e == newest) for e in range(at.experts))
            for _ in range(2)
        ),
        tuple(
            tuple(draw(width, at.rank, scale=up).requires_grad_(e == newest) for e in range(at.experts))
            for _ in range(2)
        ),
        ids,
        torch.rand(ids.shape, generator=generator, device=device).to(dtype).requires_grad_(),
        tuple(draw(at.tokens, width) for _ in range(2)),
    )


def ids_of(at: At, seed: int = 0) -> Tensor:
    """Draw the expert of every item: of tokens, or of the samples of the batch."""
    items = at.tokens if at.granularity == "token" else at.batch
    return drawn_ids(at.routing, items, max(at.experts, 1), torch.Generator().manual_seed(seed + 3))


def drawn_ids(routing: Routing, items: int, experts: int, generator: torch.Generator) -> Tensor:
    """Draw experts by a pattern, int64 of shape [items]."""
    newest = experts - 1
    even = torch.randint(experts, (items,), generator=generator)
    if routing == "all to one":
        return torch.full((items,), newest)
    if routing == "90/10":
        return torch.where(torch.rand(items, generator=generator) < 0.9, newest, even)
    if routing == "half empty":
        return torch.randint(experts // 2, experts, (items,), generator=generator)
    if routing == "blobs":
        length = max(items // BLOBS, 1)
        runs = torch.randint(experts, (-(-items // length),), generator=generator)
        return runs.repeat_interleave(length)[:items]
    return even


def outputs_and_gradients(run: Callable[[], Sequence[Tensor]], at: Problem) -> dict[str, Tensor]:
    """Run forward and backward, and name everything that came out."""
    leaves = at.leaves()
    outs = tuple(run())
    found = torch.autograd.grad(outs, list(leaves.values()), at.grads, allow_unused=True)
    named = {f"out_{name}": out.detach() for name, out in zip("kv", outs, strict=True)}
    pairs = zip(leaves.items(), found, strict=True)
    return named | {
        f"grad_{name}": torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs
    }


def by_peft_formula(given: Problem) -> tuple[Tensor, ...]:
    """Compute K and V as PEFT's LoRA would, rounding where it rounds: base(x) + B(A(x)) * scale * gate."""
    ids = given.ids.repeat_interleave(given.tokens_per_item)
    gates = given.gates.repeat_interleave(given.tokens_per_item).unsqueeze(-1)
    outs = []
    for out, downs, ups in zip(given.plain(), given.downs, given.ups, strict=True):
        for expert, (down, up) in enumerate(zip(downs, ups, strict=True)):
            delta = F.linear(F.linear(given.hidden, down), up) * SCALE * gates
            out = out + torch.where((ids == expert).unsqueeze(-1), delta, torch.zeros_like(delta))
        outs.append(out)
    return tuple(outs)


def case_of_run(run: Callable[[], Sequence[Tensor]], given: Problem, passes: Pass) -> Case:
    """Make a case: a forward without gradients, or a forward and backward from the problem's gradients."""
    if passes == "forward":

        @torch.no_grad()
        def forward() -> None:
            run()

        return Case(forward)

    def training() -> None:
        torch.autograd.backward(tuple(run()), given.grads)

    def clear() -> None:
        for leaf in given.leaves().values():
            leaf.grad = None

    return Case(training, clear)
