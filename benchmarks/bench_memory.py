"""How much activation memory a forward and backward takes: counted, not timed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.group_run import SKIPPED, done
from benchmarks.groups import LORA, MEMORY, PLAIN, ROUTED_PEERS, SetName
from benchmarks.measuring import gradients_like, tidy, where
from benchmarks.memory import MIB, peak_bytes, saved_bytes
from benchmarks.origin import origin
from benchmarks.peers import Peer, build
from benchmarks.points import Point, hidden_of
from benchmarks.schema import Kept, Result, write

NAME = "memory"


def points(chosen: SetName) -> list[tuple[str, Point]]:
    """List what is counted: each pool size by token, peers at N = 4 and N = 8."""
    found: list[tuple[str, Point]] = []
    for tokens, width, ranks in MEMORY[chosen]:
        found.append((PLAIN, Point(tokens, width, ranks[0])))
        for rank in ranks:
            found.append((LORA, Point(tokens, width, rank)))
            found += [("prw", Point(tokens, width, rank, experts)) for experts in (1, 4, 8)]
            found.append(("prw", Point(tokens, width, rank, 8, "sample")))
            found += [(name, Point(tokens, width, rank, n)) for name in ROUTED_PEERS for n in (4, 8)]
    return found


def count(peer: Peer) -> Kept:
    """Count one competitor's forward and backward, after one that warms up."""
    hidden = hidden_of(peer.point)
    gradients = gradients_like(hidden)
    peer.model.train()

    def forward() -> tuple[torch.Tensor, ...]:
        return tuple(peer.model(hidden))

    def step() -> None:
        torch.autograd.backward(forward(), gradients)

    def clear() -> None:
        for parameter in (*peer.trainable(), hidden):
            parameter.grad = None

    step()
    clear()
    saved = saved_bytes(forward, peer.model.parameters())
    peak = peak_bytes(step)
    clear()
    return Kept(
        case=peer.name,
        where=where(peer.point, plain=peer.name == PLAIN),
        saved_mib=tidy(saved / MIB),
        peak_mib=tidy(peak / MIB),
    )


def bench_memory(benchmark: Any, results: Path, chosen: SetName) -> None:
    if not benchmark.disabled and done(results, NAME, chosen):
        pytest.skip(SKIPPED)
    kept = benchmark.pedantic(lambda: [count(build(*case)) for case in points(chosen)])
    assert all(row.peak_mib > 0 for row in kept)
    if not benchmark.disabled:
        result = Result(kind="memory", name=NAME, set=chosen, origin=origin(), rounds=1, kept=kept)
        write(result, results)
