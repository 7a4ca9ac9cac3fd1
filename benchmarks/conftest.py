"""Prints the cases of each interleaved benchmark side by side; pytest-benchmark's own table mixes them."""

from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line per case: median, interquartile range, ratio to the first case."""
    session = getattr(config, "_benchmarksession", None)
    for measured in session.benchmarks if session is not None else ():
        terminalreporter.write_sep("-", measured.name)
        for row in measured.extra_info.get("cases", ()):
            terminalreporter.write_line(line_of(row))


def line_of(row: dict[str, Any]) -> str:
    """A case as a line of the table."""
    return f"{row['case']:16} {row['median_ms']:9.3f} ms  +-{row['iqr_ms']:7.3f}  x{row['ratio']:.2f}"
