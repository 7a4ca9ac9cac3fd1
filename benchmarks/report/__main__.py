"""Writes docs/benchmarks.md and its plots from the committed results."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report.found import RESULTS, load
from benchmarks.report.page import PAGE, page
from benchmarks.report.plots import PLOTS


def main() -> None:
    """Read a folder of results and write the page beside its plots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; plots go to assets/ beside it")
    asked = parser.parse_args()
    found = load(asked.results)
    asked.page.write_text(page(found), encoding="utf-8")
    assets = asked.page.parent / "assets"
    assets.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        plot(found, assets / name)


if __name__ == "__main__":
    main()
