"""Runs every check of every family and, if all hold, writes docs/supported-models.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.prw.matrix.checks import CHECKS, checks_of
from tests.prw.matrix.page import PAGE, page
from tests.prw.matrix.registry import FAMILIES


def main() -> int:
    failed = []
    for family in FAMILIES:
        for name in checks_of(family):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    CHECKS[name](family, Path(folder))
                except AssertionError as error:
                    failed.append(f"{family.name}: {name} does not hold: {error}")
        sys.stdout.write(f"{family.name}\n")
    if failed:
        sys.stderr.write("\n".join(["the page was not written:", *failed]) + "\n")
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
