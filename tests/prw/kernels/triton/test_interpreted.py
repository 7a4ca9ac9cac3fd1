"""Runs the tests of the kernels in a process of its own, in which Triton interprets them on the CPU.

TRITON_INTERPRET must be set before Triton is imported and changes it for good, so it stays out of this
process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
TESTS = Path(__file__).parent / "interpreted" / "products.py"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_interpreted_kernels_equal_plain_loops():
    written = len(re.findall(r"^def test_", TESTS.read_text("utf-8"), re.MULTILINE))
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed in", ran.stdout)
    assert passed and int(passed[1]) >= written >= 15
    assert not re.search(r"skipped|deselected|xfailed", ran.stdout)
