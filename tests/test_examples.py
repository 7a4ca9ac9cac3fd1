"""Every example runs as its page says, and stays a page."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_talks(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_page(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60


def test_as_of_recalls_exactly_what_the_curriculum_example_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(ROOT / "examples" / "02_curriculum.py"))["main"](steps=8)
    lines = capsys.readouterr().out.splitlines()
    losses = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    assert len(losses) == 3
    assert all(own == recalled for own, _, recalled in losses)
    assert any(own != at_the_end for own, at_the_end, _ in losses)
