"""What eight routed experts cost beside every peer."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.group_run import run_group
from benchmarks.groups import Group, SetName

KIND = "peers"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what torch.compile says of torch itself
def bench_peers(benchmark: Any, group: Group, results: Path, chosen: SetName) -> None:
    run_group(benchmark, group, results, chosen)
