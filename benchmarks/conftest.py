"""Options of the benchmarks, and their results side by side; pytest-benchmark's own table mixes the cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.groups import SetName, groups
from benchmarks.schema import Kept, Result, Timed, read

LOCAL = Path(__file__).resolve().parent / "results" / "local"
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
    """Give every benchmark the groups, or the geometries, of the chosen set."""
    if "group" in metafunc.fixturenames:
        found = groups(metafunc.module.KIND, set_of(metafunc.config))
        metafunc.parametrize("group", found, ids=[group.name for group in found])
    if "geometry" in metafunc.fixturenames:
        shapes = metafunc.module.GEOMETRIES[set_of(metafunc.config)]
        metafunc.parametrize("geometry", shapes, ids=[f"d{shape.width}-r{shape.rank}" for shape in shapes])


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
    """Print each result: median, interquartile range, ratio to the first case, floor over time."""
    for path in config.stash.get(written, []):
        terminalreporter.write_sep("-", path.name)
        for line in lines_of(read(path)):
            terminalreporter.write_line(line)


def lines_of(result: Result) -> list[str]:
    """Write a result as lines of a table."""
    lines = [timed_line(row) for row in result.timed]
    for row in result.kept:
        lines.append(f"{label(row):48} saved {row.saved_mib:8.2f} MiB, peak {row.peak_mib:8.2f} MiB")
    for step in result.steps:
        ratios = f"x{step.ratio:.3f}  to LoRA x{step.ratio_to_lora:.3f}"
        lines.append(f"{step.what}: {step.case:24} {step.median_ms:9.1f} ms  {ratios}")
    for row in result.drawn:
        ratios = f"x{row.ratio:.3f}  Kontext takes x{row.kontext_ratio:.3f}"
        memory = f"weights {row.weights_mib:.1f} MiB, peak {row.peak_mib:.1f} MiB"
        lines.append(f"{row.case:40} {row.median_ms:9.1f} ms  {ratios}  {memory}")
    return lines


def label(row: Timed | Kept) -> str:
    at = row.where
    return f"{row.case}, r={at.rank} N={at.experts} {at.granularity} {at.skew}"


def timed_line(row: Timed) -> str:
    """A case as a line of the table."""
    reached = "" if row.floor is None else f"  floor/time {row.floor / row.ratio:.2f}"
    return f"{label(row):48} {row.median_ms:9.3f} ms  +-{row.iqr_ms:7.3f}  x{row.ratio:.3f}{reached}"
