"""Options of the CPU's benchmarks, and their results side by side; pytest-benchmark times whole groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.cases import cpu_groups
from benchmarks.console import lines
from benchmarks.schema import SetName
from benchmarks.store import LOCAL, read

written = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what to measure and where to write it."""
    group = parser.getgroup("benchmarks of prw")
    group.addoption("--set", choices=("smoke", "default", "full"), default=None, help="how much is measured")
    group.addoption("--to", type=Path, default=LOCAL, help="folder of the results")


def set_of(config: pytest.Config) -> SetName:
    """Give the set: what was asked for, else the smallest where nothing is measured."""
    asked: SetName | None = config.getoption("--set", None)
    if asked is None:
        return "default" if config.getoption("benchmark_enable", False) else "smoke"
    return asked


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the benchmark every group of the chosen set."""
    if "group" in metafunc.fixturenames:
        found = cpu_groups(set_of(metafunc.config))
        metafunc.parametrize("group", found, ids=[group.name for group in found])


@pytest.fixture(scope="session")
def chosen(pytestconfig: pytest.Config) -> SetName:
    """The set that is measured."""
    return set_of(pytestconfig)


@pytest.fixture
def results(pytestconfig: pytest.Config) -> Iterator[Path]:
    """The folder of the results; what appears there is printed at the end."""
    folder: Path = pytestconfig.getoption("--to", LOCAL)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    yield folder
    news = [path for path in folder.glob("*.json") if before.get(path) != path.stat().st_mtime_ns]
    pytestconfig.stash.setdefault(written, []).extend(sorted(news))


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Start every benchmark from the same random state."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each result."""
    for path in config.stash.get(written, []):
        terminalreporter.write_sep("-", path.name)
        for line in lines(read(path)):
            terminalreporter.write_line(line)
