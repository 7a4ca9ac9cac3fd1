"""Measures one group and writes its result, unless this very code has measured it here before."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import prw
from benchmarks.groups import Group, SetName
from benchmarks.measuring import case_of, gradients_like, interleaved, rounds_for, routed_of, timed
from benchmarks.origin import digest_of_code, origin
from benchmarks.peers import Peer, build
from benchmarks.points import hidden_of
from benchmarks.schema import Result, read, write

SKIPPED = "measured already by this very code; remove the file to measure again"


def done(folder: Path, name: str, chosen: SetName) -> bool:
    """Tell whether a folder has this result already, of the same code, set and number of threads."""
    path = folder / f"{name}.json"
    if not path.exists():
        return False
    found, machine = read(path), origin().machine
    return (found.origin.code, found.set, found.origin.machine) == (digest_of_code(), chosen, machine)


def built(group: Group) -> dict[str, Peer]:
    """Build the cases of a group; kernels that this device or library has not are left out."""
    found = {}
    for name, point in group.cases:
        try:
            peer = build(name, point)
        except prw.ConfigError:
            if not name.startswith("prw "):
                raise
            continue
        found[f"{name} {point}"] = peer
    return found


def run_group(benchmark: Any, group: Group, folder: Path, chosen: SetName) -> None:
    """Measure a group with pytest-benchmark, or run each case once where that is switched off."""
    if not benchmark.disabled and done(folder, group.name, chosen):
        pytest.skip(SKIPPED)
    peers = built(group)
    routed = {}
    cases = {}
    gradients = gradients_like(hidden_of(group.cases[0][1]))  # shared: nobody writes to them
    for key, peer in peers.items():
        hidden = hidden_of(peer.point)
        cases[key] = case_of(peer, hidden, gradients, group.passes)
        routed[key] = routed_of(peer.weave, partial(peer.model, hidden))
    rounds = 1 if benchmark.disabled else rounds_for(cases, group.budget_s)
    gc.collect()
    seconds: Mapping[str, list[float]] = interleaved(benchmark, cases, rounds)
    if seconds:
        result = Result(
            kind=group.kind,
            name=group.name,
            set=chosen,
            origin=origin(),
            passes=group.passes,
            rounds=rounds,
            timed=timed(peers, routed, seconds, group.passes),
        )
        write(result, folder)
