"""Functions of diffusers are recognised by their names, so diffusers must still have them."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers

from prw.tuner import host_calls

RECOGNISED = ("FUSING", "SAVING", "MEASURING", "SCALING", "NAMING", "MOVING", "SAVING_ADAPTER")


def test_diffusers_still_has_every_function_that_is_recognised_by_its_name() -> None:
    names = [getattr(host_calls, kind) for kind in RECOGNISED]
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(diffusers.__file__).parent.rglob("*.py")
    )
    gone = [name for group in names for name in group if not re.search(rf"def {name}\(", text)]
    assert not gone, f"diffusers {diffusers.__version__} has renamed {gone}: mend prw/tuner/host_calls.py"
