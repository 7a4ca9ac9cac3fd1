"""The CPU's benchmarks: `scripts/bench` measures them, `make test` runs each once at tiny sizes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Group
from benchmarks.run import measure
from benchmarks.schema import Result, SetName
from benchmarks.store import LOCAL, done, origin, write
from benchmarks.timing import Device

SKIPPED = "measured already by this very code; remove the file to measure again"


# What torch.compile says of torch itself, and of gradients that it looks for while it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def bench_group(
    benchmark: Any, group: Group, results: list[Result], chosen: SetName, pytestconfig: pytest.Config
) -> None:
    device, folder = Device(), pytestconfig.getoption("--to", LOCAL)
    if benchmark.disabled:
        device.warm_ups = 0
    elif done(folder, group.name, origin(device, group.kind), chosen):
        pytest.skip(SKIPPED)
    result = benchmark.pedantic(measure, args=(device, group, chosen))
    assert not result.failures
    if not benchmark.disabled:
        write(result, folder)
        results.append(result)
