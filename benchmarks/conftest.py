"""Options of the CPU's benchmarks, and their results side by side; pytest-benchmark times whole groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.cases import cpu_groups
from benchmarks.console import lines
from benchmarks.schema import Result, SetName
from benchmarks.store import LOCAL

measured: list[Result] = []
"""Of this process, to be printed at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what to measure and where to write it."""
    group = parser.getgroup("benchmarks of prw")
    group.addoption("--set", choices=("smoke", "default", "full"), default=None, help="how much is measured")
    group.addoption("--to", type=Path, default=LOCAL, help="folder of the results")


def set_of(config: pytest.Config) -> SetName:
    """Give the set: what was asked for, else the smallest where nothing is measured."""
    asked: SetName | None = config.getoption("--set", None)
    return asked or ("default" if config.getoption("benchmark_enable", False) else "smoke")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the benchmark every group of the chosen set."""
    if "group" in metafunc.fixturenames:
        found = cpu_groups(set_of(metafunc.config))
        metafunc.parametrize("group", found, ids=[group.name for group in found])


@pytest.fixture
def chosen(pytestconfig: pytest.Config) -> SetName:
    """The set that is measured, from the same random state in every group."""
    torch.manual_seed(0)
    return set_of(pytestconfig)


@pytest.fixture
def results() -> list[Result]:
    """What was measured."""
    return measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each result."""
    for result in measured:
        terminalreporter.write_sep("-", result.name)
        for line in lines(result):
            terminalreporter.write_line(line)
