"""Correctness on the device, before anything is timed: no number for a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import first_line
from benchmarks.gpu.compiled import compiled_equals_eager
from benchmarks.gpu.device import Device
from benchmarks.gpu.far_index import needed_bytes, tail_errors
from benchmarks.gpu.problem import Problem, by_peft_formula, outputs_and_gradients, problem
from benchmarks.gpu.schema import At, Check
from prw.errors import ConfigError

FLOAT32_ERROR = 1e-5
NO_WORSE = {"out": 1.1, "grad": 1.5}
"""Errors of two roundings of the same numbers differ by chance: little for outputs, more for gradients, some
of which are few numbers (one per sample of the batch)."""
LEAST_ERROR = {"out": 2e-3, "grad": 6e-3}
"""Half a unit in bfloat16's last place, and three halves: below that an error cannot be called worse."""


class NotMadeError(Exception):
    """A check that cannot be made here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """Where the checks are made and at which sizes.

    Attributes:
        device: The device.
        small: Odd sizes, for float32.
        large: Sizes as they are timed, for 16 bits.
        inductor: Whether torch.compile compiles for the device; if not, it only traces.
    """

    device: Device
    small: At
    large: At
    inductor: bool = True
    truths: dict[str, tuple[Problem, dict[str, Tensor]]] = field(default_factory=dict)

    def at(self, large: bool, granularity: str) -> At:
        """Give one of the sizes by token or by sample."""
        return (self.large if large else self.small).model_copy(update={"granularity": granularity})

    def known(self, large: bool, granularity: str) -> tuple[Problem, dict[str, Tensor]]:
        """Give a problem and what the reference makes of it in float64; made once for all kernels."""
        key = f"{large} {granularity}"
        if key not in self.truths:
            unrouted = 0.1 if granularity == "token" else 0.0
            given = problem(self.at(large, granularity), self.device.torch_device, unrouted=unrouted)
            self.truths[key] = given, truth(given)
        return self.truths[key]


def truth(given: Problem) -> dict[str, Tensor]:
    """Compute outputs and gradients by the reference in float64."""
    exact = given.to(torch.float64)
    return outputs_and_gradients(lambda: exact.routed("reference"), exact)


def errors(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the relative error of every output and gradient."""
    found = {}
    for name, exact in wanted.items():
        size = float(exact.norm())
        off = float((got[name].double() - exact).norm())
        found[name] = off / size if size else off
    return found


def worst(found: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Name what is above its limit, or give an empty string. Not a number is above any limit."""
    return "; ".join(
        f"{name}: error {error:.2e}, at most {limits[name]:.2e}"
        for name, error in found.items()
        if not error <= limits[name]
    )


def float32_equals(bench: Bench, kernel: str, granularity: str) -> str:
    given, exact = bench.known(False, granularity)
    try:
        got = outputs_and_gradients(lambda: given.routed(kernel), given)
    except ConfigError as error:
        raise NotMadeError(f"refuses float32: {first_line(error)}") from error
    return worst(errors(got, exact), dict.fromkeys(exact, FLOAT32_ERROR))


def peft_limits(given: Problem, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the error that PEFT's own formula has on the same numbers, as the limit of everything."""
    theirs = errors(outputs_and_gradients(lambda: by_peft_formula(given), given), exact)
    kinds = {name: name.partition("_")[0] for name in theirs}
    return {
        name: max(error * NO_WORSE[kinds[name]], LEAST_ERROR[kinds[name]]) for name, error in theirs.items()
    }


def no_worse_than_peft(bench: Bench, kernel: str, granularity: str) -> str:
    given, exact = bench.known(True, granularity)
    got = outputs_and_gradients(lambda: given.routed(kernel), given)
    return worst(errors(got, exact), peft_limits(given, exact))


def twice_the_same_bits(bench: Bench, kernel: str) -> str:
    given, _ = bench.known(True, "token")
    one, two = (outputs_and_gradients(lambda: given.routed(kernel), given) for _ in range(2))
    changed = [name for name, value in one.items() if not torch.equal(value, two[name])]
    return f"other bits the second time: {', '.join(changed)}" if changed else ""


def waits_for_nothing(bench: Bench, kernel: str) -> str:
    for granularity in ("token", "sample"):
        given, _ = bench.known(True, granularity)
        run = partial(given.routed, kernel)
        outputs_and_gradients(run, given)  # what is compiled or cached, once
        with bench.device.unsynchronized():
            outputs_and_gradients(run, given)
    return ""


def one_recording_serves(bench: Bench, kernel: str) -> str:
    """Record forward and backward once, change the decision in place, replay, compare with the truth."""
    given = problem(bench.large, bench.device.torch_device, seed=7)
    held: dict[str, Tensor] = {}

    def run() -> None:
        for leaf in given.leaves().values():
            leaf.grad = None
        outs = given.routed(kernel)
        torch.autograd.backward(outs, given.grads)
        held.update({f"out_{name}": out.detach() for name, out in zip("kv", outs, strict=True)})
        held.update(
            {f"grad_{name}": leaf.grad for name, leaf in given.leaves().items() if leaf.grad is not None}
        )

    for _ in range(3):
        run()
    for leaf in given.leaves().values():
        leaf.grad = None
    replay = bench.device.captured(run)
    other = problem(bench.large, bench.device.torch_device, seed=8, unrouted=0.2)
    given.ids.copy_(other.ids)
    replay()
    bench.device.synchronize()
    exact = truth(given)
    missing = set(exact) - set(held)
    if missing:
        return f"no gradient for {', '.join(sorted(missing))}"
    return worst(errors(held, exact), peft_limits(given, exact))


def compiles(bench: Bench, kernel: str) -> str:
    return compiled_equals_eager(bench.device, kernel, bench.large, "inductor" if bench.inductor else "eager")


def far_rows(bench: Bench, kernel: str) -> str:
    free = bench.device.free_bytes()
    needed = needed_bytes(bench.large)
    if free < needed:
        raise NotMadeError(f"needs {needed >> 30} GiB, {free >> 30} GiB are free")
    limit = {"out": 1.5e-2, "grad": 1.5e-2}  # of bfloat16, with its roundings one after another
    return worst(tail_errors(bench.device, kernel, bench.large), limit)


CHECKS: Mapping[str, tuple[Callable[[Bench, str], str], bool]] = {
    "float32 equals the reference": (lambda b, k: float32_equals(b, k, "token"), True),
    "float32 equals the reference, samples": (lambda b, k: float32_equals(b, k, "sample"), True),
    "bfloat16 no worse than PEFT's formula": (lambda b, k: no_worse_than_peft(b, k, "token"), True),
    "bfloat16 no worse than PEFT's formula, samples": (lambda b, k: no_worse_than_peft(b, k, "sample"), True),
    "twice the same bits": (twice_the_same_bits, True),
    "never waits for the device": (waits_for_nothing, True),
    "one recording serves other decisions": (one_recording_serves, True),
    "torch.compile(fullgraph=True)": (compiles, False),
    "more than 2^31 numbers": (far_rows, False),
}
"""Every check, and whether a kernel that fails it is not timed."""


def checked(bench: Bench, kernel: str) -> Iterator[Check]:
    """Make every check of a kernel; an error is a failed check with its words, and the next one goes on.

    Raises:
        DeviceLostError: if the device went with it.
    """
    for name, (check, _) in CHECKS.items():
        try:
            wrong = check(bench, kernel)
        except (NotMadeError, torch.OutOfMemoryError) as why:
            yield Check(kernel=kernel, check=name, passed=None, note=first_line(why))
        except Exception as error:
            yield Check(kernel=kernel, check=name, passed=False, note=first_line(error))
        else:
            yield Check(kernel=kernel, check=name, passed=not wrong, note=wrong)
        bench.device.still_there(kernel)


def may_be_timed(kernel: str, checks: list[Check]) -> bool:
    """Tell whether a kernel was checked and failed nothing that its numbers depend on."""
    mine = {check.check: check.passed for check in checks if check.kernel == kernel}
    needed = [name for name, (_, blocks) in CHECKS.items() if blocks]
    return all(mine.get(name, False) is not False for name in needed) and any(mine.values())
