"""Correctness of every kernel on the device, through a pool as users get it: no number for a wrong kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prw
from benchmarks.baselines import pool
from benchmarks.cases import Group, check_points
from benchmarks.points import SCALE, Weights, assignment_of, routers_of, weights_of
from benchmarks.schema import Check, Failure, Point, Result, SetName
from benchmarks.timing import Device, DeviceLostError, first_line

FLOAT32_ERROR, COMPILED_ERROR = 1e-5, 1e-2
NO_WORSE = {"out": 1.1, "grad": 1.5, "router": 2.0}
"""Errors of two roundings of the same numbers differ by chance: little for outputs, more for gradients, most
for a router vector's: a sum of either sign over as few items as the batch has samples."""
LEAST_ERROR = {"out": 2e-3, "grad": 6e-3, "router": 1.2e-2}
"""Half a unit in bfloat16's last place, three and six halves: below that an error cannot be called worse."""
CHOSEN, OTHERS = 2.0, 1.0
"""Logit of an item's own expert, and the largest of another one's: so far apart that rounding decides
nothing, so near that the router's gradient is no difference of nearly equal numbers."""
STRONGER = 3.0
"""Factor on B, so that an error in the experts' part is seen in the output."""
LOST = "lost the device: "
FAR_RANK, FAR_EXPERTS, TAIL, FAR_ERROR = 16, 2, 128, 1.5e-2
WIDE_TENSORS = 16
"""Tensors of [T, d] in 16 bits that live at once at most where T x d is above 2^31."""


class NotMadeError(Exception):
    """A check that cannot be made here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """A pool with an input [batch, tokens, d] whose routing is clear, and gradients of its keys and values.

    `mask` says which tokens are routed, bool [batch, tokens]; None means all.
    """

    model: nn.Module
    weave: prw.Weave
    hidden: Tensor
    grads: tuple[Tensor, Tensor]
    mask: Tensor | None = None

    def forward(self) -> tuple[Tensor, ...]:
        """Compute K and V."""
        with nullcontext() if self.mask is None else self.weave.route_only(self.mask):
            return tuple(self.model(self.hidden))

    def leaves(self) -> dict[str, Tensor]:
        """Name what gets gradients: the input, the newest expert and its router vector."""
        found = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        return {"hidden": self.hidden} | {name: one for name, one in found.items() if "prw_noise" not in name}

    def results(self, forward: Callable[[], Sequence[Tensor]] | None = None) -> dict[str, Tensor]:
        """Run forward and backward, and name every output and gradient."""
        leaves, outs = self.leaves(), (forward or self.forward)()
        grads = torch.autograd.grad(outs, list(leaves.values()), self.grads, allow_unused=True)
        found = {f"out {name}": out.detach() for name, out in zip("kv", outs, strict=True)}
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            found[f"grad {name}"] = torch.zeros_like(leaf) if grad is None else grad
        return found


def problem(point: Point, device: Device, kernel: str, seed: int = 0, unrouted: float = 0.0) -> Problem:
    """Make a problem, in evaluation mode: noise would give every kernel another routing."""
    where, dtype = device.torch_device, getattr(torch, point.dtype)
    model, weave = pool(point, stronger(weights_of(point, where)), kernel)
    generator, shape = torch.Generator().manual_seed(10 + seed), (point.batch, point.tokens // point.batch)
    mask = (torch.rand(shape, generator=generator) >= unrouted).to(where) if unrouted else None
    keys, values = (torch.randn(*shape, point.width, generator=generator).to(where, dtype) for _ in range(2))
    hidden = clear_input(point, generator).to(where, dtype).requires_grad_()
    return Problem(model.to(dtype).eval(), weave, hidden, (keys, values), mask)


def stronger(weights: Weights) -> Weights:
    """Make the experts' part large."""
    pairs = ((k._replace(up=STRONGER * k.up), v._replace(up=STRONGER * v.up)) for k, v in weights.adapters)
    return weights._replace(adapters=tuple(pairs))


def clear_input(point: Point, generator: torch.Generator) -> Tensor:
    """Make an input [batch, tokens, d] whose logits are `CHOSEN` for one expert and less for the others."""
    routers, shape = routers_of(point), (point.batch, point.tokens // point.batch)  # [N, d]
    noise = torch.randn(*shape, point.width, generator=generator)
    noise = noise - noise @ routers.T @ routers  # [batch, tokens, d], orthogonal to every router vector
    shift = int(torch.randint(point.experts, (1,), generator=generator))
    ids = (assignment_of(point) + shift) % point.experts  # [batch, tokens]
    logits = (2 * torch.rand(*shape, point.experts, generator=generator) - 1) * OTHERS  # [batch, tokens, N]
    return noise + logits.scatter(-1, ids.unsqueeze(-1), CHOSEN) @ routers


def in_float64(given: Problem, reference: Problem) -> Problem:
    """Give the numbers of a problem to the reference, in float64, where they are exactly these."""
    hidden = given.hidden.detach().double().requires_grad_()
    grads = given.grads[0].double(), given.grads[1].double()
    return Problem(reference.model.double(), reference.weave, hidden, grads, given.mask)


def by_peft_formula(given: Problem, granularity: str) -> tuple[Tensor, ...]:
    """Compute K and V as PEFT's LoRA would, rounding where it rounds: base(x) + B(A(x)) * scale * gate."""
    found: dict[tuple[str, str, int], Tensor] = {}
    bases: dict[str, list[Tensor]] = {"to_k": [], "to_v": []}
    for name, value in given.model.named_parameters():
        projection = "to_k" if "to_k" in name else "to_v"
        match = re.search(r"\.prw_([A-Za-z_]+?)(\d+)\.", name)
        if match is None:
            bases[projection].append(value)
        elif match[1] != "noise":
            found[projection, match[1] if match[1] in "AB" else "router", int(match[2])] = value
    experts, features = 1 + max(index for _, _, index in found), given.hidden.float()  # [batch, tokens, d]
    if granularity == "sample":
        features = features.mean(1, keepdim=True)  # -> [batch, 1, d]
    vectors = torch.cat([found["to_k", "router", index] for index in range(experts)]).float()  # [N, d]
    best = (features @ vectors.T).softmax(-1).max(-1, keepdim=True)  # [batch, tokens or 1, 1]
    outs = []
    for projection, base in bases.items():
        out = F.linear(given.hidden, *base)
        for index in range(experts):
            down, up = (found[projection, kind, index] for kind in "AB")
            delta = F.linear(F.linear(given.hidden, down), up) * SCALE * best.values.to(out.dtype)
            chosen = best.indices == index
            chosen = chosen if given.mask is None else chosen & given.mask.unsqueeze(-1)
            out = out + torch.where(chosen, delta, torch.zeros_like(delta))
        outs.append(out)
    return tuple(outs)


@dataclass(frozen=True)
class CheckSetup:
    """Where the checks are made and at which sizes."""

    device: Device
    small: Point  # odd sizes, for float32
    large: Point  # as they are timed, for 16 bits
    inductor: bool = True  # whether torch.compile compiles for the device; if not, it only traces
    truths: dict[tuple[bool, str], dict[str, Tensor]] = field(default_factory=dict)

    def problem(self, kernel: str, large: bool = True, granularity: str = "token") -> Problem:
        """Make a kernel's problem at one of the sizes."""
        point = (self.large if large else self.small).but(granularity=granularity)
        return problem(point, self.device, kernel, unrouted=0.1 if granularity == "token" else 0.0)

    def truth(self, given: Problem, large: bool, granularity: str) -> dict[str, Tensor]:
        """Give what the reference makes of a problem in float64; made once for all kernels."""
        if (large, granularity) not in self.truths:
            exact = in_float64(given, self.problem("reference", large, granularity))
            self.truths[large, granularity] = exact.results()
        return self.truths[large, granularity]


def errors(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the relative error of every output and gradient."""
    off = {name: float((got[name].double() - exact).norm()) for name, exact in wanted.items()}
    return {name: off[name] / (float(exact.norm()) or 1.0) for name, exact in wanted.items()}


def worst(found: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Name what is above its limit, or give an empty string. Not a number is above any limit."""
    above = [(name, error, limits[name]) for name, error in found.items() if not error <= limits[name]]
    return "; ".join(f"{name}: error {error:.2e}, at most {limit:.2e}" for name, error, limit in above)


def float32_equals(setup: CheckSetup, kernel: str, granularity: str) -> str:
    """Compare with the reference in float64 to 1e-5."""
    try:
        given = setup.problem(kernel, False, granularity)
        got = given.results()
    except prw.ConfigError as error:
        raise NotMadeError(f"refuses float32: {first_line(error)}") from error
    exact = setup.truth(given, False, granularity)
    return worst(errors(got, exact), dict.fromkeys(exact, FLOAT32_ERROR))


def peft_limits(given: Problem, exact: Mapping[str, Tensor], granularity: str = "token") -> dict[str, float]:
    """Give the error that PEFT's own formula has on the same numbers, as the limit of everything."""
    adapters, limits = re.compile(r"^out |^grad hidden|prw_[AB]\d"), {}
    for name, error in errors(given.results(lambda: by_peft_formula(given, granularity)), exact).items():
        kind = name.partition(" ")[0] if adapters.search(name) else "router"
        limits[name] = max(error * NO_WORSE[kind], LEAST_ERROR[kind])
    return limits


def no_worse_than_peft(setup: CheckSetup, kernel: str, granularity: str) -> str:
    """Compare with float64 in 16 bits, beside PEFT's formula."""
    given = setup.problem(kernel, True, granularity)
    exact = setup.truth(given, True, granularity)
    return worst(errors(given.results(), exact), peft_limits(given, exact, granularity))


def twice_the_same_bits(setup: CheckSetup, kernel: str) -> str:
    """Run twice."""
    given = setup.problem(kernel)
    one, two = given.results(), given.results()
    changed = [name for name, value in one.items() if not torch.equal(value, two[name])]
    return f"other bits the second time: {', '.join(changed)}" if changed else ""


def waits_for_nothing(setup: CheckSetup, kernel: str) -> str:
    """Run where waiting for the device is an error."""
    for granularity in ("token", "sample"):
        given = problem(setup.large.but(granularity=granularity), setup.device, kernel)
        given.results()  # what is compiled or cached, once
        with setup.device.waits_are_errors():
            given.results()
    return ""


def one_recording_serves(setup: CheckSetup, kernel: str) -> str:
    """Record forward and backward once, change input and decision in place, replay, compare."""
    given = problem(setup.large, setup.device, kernel, seed=7)
    held: dict[str, Tensor] = {}

    def clear() -> None:
        for leaf in given.leaves().values():
            leaf.grad = None

    def run() -> None:
        clear()
        outs = given.forward()
        torch.autograd.backward(outs, given.grads)
        held.update({f"out {name}": out.detach() for name, out in zip("kv", outs, strict=True)})
        held.update(
            {f"grad {name}": one.grad for name, one in given.leaves().items() if one.grad is not None}
        )

    for _ in range(3):
        run()
    clear()
    replay = setup.device.recorded(run)
    with torch.no_grad():
        given.hidden.copy_(problem(setup.large, setup.device, kernel, seed=8).hidden)
    replay()
    setup.device.synchronize()
    exact = in_float64(given, problem(setup.large, setup.device, "reference")).results()
    missing = set(exact) - set(held)
    if missing:
        return f"no gradient for {', '.join(sorted(missing))}"
    return worst(errors(held, exact), peft_limits(given, exact))


@torch.no_grad()
def compiles(setup: CheckSetup, kernel: str) -> str:
    """Compile a pool's forward as one graph, and compare with the eager one."""
    given = problem(setup.large, setup.device, kernel)
    wanted = {name: one.double() for name, one in zip("kv", given.forward(), strict=True)}
    torch._dynamo.reset()
    compiled = torch.compile(given.model, fullgraph=True, backend="inductor" if setup.inductor else "eager")
    got = dict(zip("kv", compiled(given.hidden), strict=True))
    torch._dynamo.reset()
    return worst(errors(got, wanted), dict.fromkeys("kv", COMPILED_ERROR))


def far_rows(setup: CheckSetup, kernel: str) -> str:
    """Check rows whose numbers lie beyond what 32 bits can count, against the reference on them alone."""
    width, where, free = setup.large.width, setup.device.torch_device, setup.device.free_bytes()
    tokens = far_tokens(width)
    needed = WIDE_TENSORS * 2 * tokens * width
    if free < needed:
        raise NotMadeError(f"needs {needed >> 30} GiB, {free >> 30} GiB are free")
    sizes = {"tokens": tokens, "width": width, "rank": FAR_RANK, "experts": FAR_EXPERTS}
    point = Point(**sizes, batch=1, dtype="bfloat16")
    weights, generator = stronger(weights_of(point, where)), torch.Generator(where).manual_seed(0)

    def to_k(kernel: str) -> nn.Module:
        model = pool(point, weights, kernel, target="k")[0].to(torch.bfloat16).eval()
        return model.get_submodule("attn.to_k")

    hidden, grad = (
        torch.empty(1, tokens, width, dtype=torch.bfloat16, device=where).normal_(generator=generator)
        for _ in range(2)
    )
    sides = (
        2 * torch.randint(2, (tokens, 1), generator=generator, device=where) - 1
    )  # of one expert or the other
    hidden += sides.to(hidden) * (CHOSEN * (weights.routers[1] - weights.routers[0])).to(hidden)
    hidden.requires_grad_()
    out = to_k(kernel)(hidden)
    (of_hidden,) = torch.autograd.grad(out, hidden, grad)
    tail = hidden.detach()[:, -TAIL:].double().requires_grad_()
    wanted = to_k("reference").double()(tail)
    (of_tail,) = torch.autograd.grad(wanted, tail, grad[:, -TAIL:].double())
    got = {"out": out.detach()[:, -TAIL:], "grad": of_hidden[:, -TAIL:]}
    return worst(errors(got, {"out": wanted.detach(), "grad": of_tail}), dict.fromkeys(got, FAR_ERROR))


def far_tokens(width: int) -> int:
    """Give so many tokens that the last ones' numbers are beyond 2^31."""
    return 2**31 // width + 4 * TAIL


CHECKS: Mapping[str, tuple[Callable[[CheckSetup, str], str], bool]] = {
    "float32 equals the reference": (lambda s, k: float32_equals(s, k, "token"), True),
    "float32 equals the reference, samples": (lambda s, k: float32_equals(s, k, "sample"), True),
    "bfloat16 no worse than PEFT's formula": (lambda s, k: no_worse_than_peft(s, k, "token"), True),
    "bfloat16 no worse than PEFT's formula, samples": (lambda s, k: no_worse_than_peft(s, k, "sample"), True),
    "twice the same bits": (twice_the_same_bits, True),
    "never waits for the device": (waits_for_nothing, True),
    "one recording serves other decisions": (one_recording_serves, True),
    "torch.compile(fullgraph=True)": (compiles, False),
    "more than 2^31 numbers": (far_rows, False),
}
"""Every check, and whether a kernel that fails it is not timed."""


def checked(setup: CheckSetup, kernel: str) -> Iterator[Check]:
    """Make every check of a kernel; an error is a failed check with its words, and the next one goes on.

    Raises:
        DeviceLostError: if the device went with it.
    """
    for name, (check, _) in CHECKS.items():
        try:
            wrong = check(setup, kernel)
        except (NotMadeError, torch.OutOfMemoryError) as why:
            yield Check(kernel=kernel, check=name, note=first_line(why))
        except Exception as error:
            yield Check(kernel=kernel, check=name, passed=False, note=first_line(error))
        else:
            yield Check(kernel=kernel, check=name, passed=not wrong, note=wrong)
        setup.device.still_there(kernel)


def may_be_timed(kernel: str, found: Sequence[Check]) -> bool:
    """Say whether a kernel was checked and failed nothing that its numbers depend on."""
    mine = {check.check: check.passed for check in found if check.kernel == kernel}
    needed = [name for name, (_, blocks) in CHECKS.items() if blocks]
    return all(mine.get(name, False) is not False for name in needed) and any(mine.values())


def checks(device: Device, group: Group, chosen: SetName, known: Sequence[Result]) -> dict[str, Any]:
    """Check one kernel, as far as the device lasts."""
    kernel, found, failures = group.cases[0][0], list[Check](), []
    setup = CheckSetup(device, *check_points(chosen), device.torch_device.type == "cuda")
    try:
        for check in checked(setup, kernel):
            found.append(check)
    except DeviceLostError:
        last = found[-1].check if found else "before a check ended"
        failures.append(Failure(case=kernel, why=f"{LOST}{last}"))
    return {"checks": found, "failures": failures}
