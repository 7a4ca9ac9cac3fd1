"""Sheets: every cell is the picture that a command of its own draws, where its label says."""

import argparse
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.generate_grid import CELL_PIXELS, GAP, LABEL, Axis, axis
from recipes.cologen.pictures import enlarge


@pytest.fixture
def arguments(finished_run: Path, tmp_path: Path) -> list[str]:
    Image.fromarray(World(3).record(0).image).save(tmp_path / "in.png")
    files = ["--checkpoint", str(finished_run), "--image", str(tmp_path / "in.png")]
    words = ["--task", "grounding", "--prompt", "draw a red box around the blue square"]
    return [*files, *words, "--output", str(tmp_path / "out.png")]


def drawn(arguments: list[str], *more: str) -> np.ndarray:
    assert main([*arguments, *more]) == 0
    with Image.open(arguments[-1]) as opened:
        return np.asarray(opened.convert("RGB")).copy()


def test_every_cell_is_the_picture_of_its_settings(arguments: list[str]) -> None:
    whole = drawn(arguments, "--grid", "seed=3..4", "pool=inpainting,full-pool,no-experts")
    options = {
        "inpainting": ["--as-of", "inpainting"],
        "full-pool": ["--as-of", "full-pool"],
        "no-experts": ["--experts-off"],
    }
    lines = 2 * LABEL
    assert whole.shape == (3 * (CELL_PIXELS + lines + GAP) - GAP, 2 * (CELL_PIXELS + GAP) - GAP, 3)
    for (row, pool), (column, seed) in product(enumerate(options), enumerate(("3", "4"))):
        alone = drawn(arguments, "--seed", seed, "--native", *options[pool])
        top, left = row * (CELL_PIXELS + lines + GAP) + lines, column * (CELL_PIXELS + GAP)
        cell = whole[top : top + CELL_PIXELS, left : left + CELL_PIXELS]
        assert np.array_equal(cell, enlarge(alone, CELL_PIXELS // 16)), (pool, seed)
        label = whole[top - lines : top, left : left + CELL_PIXELS]
        assert label.min() < 50 and label.mean() > 200


def test_one_axis_makes_a_row(arguments: list[str]) -> None:
    assert drawn(arguments, "--grid", "steps=1,2,5").shape == (256 // 2 + LABEL, 3 * (128 + GAP) - GAP, 3)


def test_axes_are_lists_or_ranges() -> None:
    assert axis("seed=2..4") == Axis("seed", ("2", "3", "4"))
    assert axis("pool=a, b") == Axis("pool", ("a", "b"))
    for text in ("sead=1", "seed", "seed=", "seed=1,,2", "seed=4..2", "seed=0..100", "prompt=x"):
        with pytest.raises(argparse.ArgumentTypeError):
            axis(text)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["seed=1", "seed=2"], "different settings"),
        (["seed=1", "steps=2", "pool=a"], "one or two"),
        (["seed=0..10", "steps=1,2,3,4,5,6,7,8,9,10"], "at most 100"),
        (["steps=0"], "steps=0: .*greater than 0"),
        (["seed=x"], "seed=x: .*integer"),
        (["pool=editing"], "'editing'.*not finished"),
    ],
)
def test_it_refuses_with_a_reason(
    arguments: list[str], grid: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--grid", *grid]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not Path(arguments[-1]).exists()
