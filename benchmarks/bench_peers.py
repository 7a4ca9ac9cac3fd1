"""What eight routed experts cost beside every peer."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.group_run import run_group
from benchmarks.groups import Group, SetName

KIND = "peers"


# What torch.compile says of torch itself, and of gradients that it looks for while it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def bench_peers(benchmark: Any, group: Group, results: Path, chosen: SetName) -> None:
    run_group(benchmark, group, results, chosen)
