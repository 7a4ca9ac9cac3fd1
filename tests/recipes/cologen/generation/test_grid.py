"""Sheets: every cell is the picture that a command of its own draws, where its label says."""

import argparse
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.data.picture_files import enlarge
from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.generation.grid import CELL_PIXELS, GAP, LABEL, Axis, axis
from recipes.cologen.generation.settings import PictureSettings, settings_file
from recipes.cologen.runs.reader import RunReader


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
    for text in (
        "sead=1",
        "seed",
        "seed=",
        "seed=1,,2",
        "seed=4..2",
        "seed=0..100",
        "seed=-2..1",
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            axis(text)
    for text in ("seed=0,0,0", "steps=5,05", "guidance=1,1.0", "pool=a,b,a"):
        with pytest.raises(argparse.ArgumentTypeError, match="has a value twice"):
            axis(text)


def test_what_had_to_be_changed_is_said_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(enlarge(World(3).record(0).image, 2)[1:, :, ::-1]).save(photo)
    control = ["--task", "control", "--prompt", "depth map to image red circle top left on gray"]
    axes = ["--grid", "seed=0..1", "steps=1,2"]
    drawn(arguments, "--image", str(photo), *control, "--draw-map", "canny", *axes)
    said = capsys.readouterr().err
    assert said.count('the map is canny ("canny edge to image"), but the prompt begins with "depth') == 1
    assert said.count("note: the picture is 32x31 pixels") == 1
    assert re.search(r"written: .*out\.png, 260x332 pixels$", said, re.MULTILINE)
    drawn(arguments, "--image", str(photo), "--grid", "seed=0..1")
    assert capsys.readouterr().err.count("note: the picture is 32x31 pixels") == 1


def test_a_sheet_of_a_file_of_settings_varies_what_the_file_says(
    arguments: list[str], finished_run: Path, tmp_path: Path
) -> None:
    wanted = PictureSettings(
        task="grounding", prompt="draw a red box around the blue square", pool="no-experts", seed=7, steps=2
    )
    file = tmp_path / "settings.json"
    run = RunReader(finished_run).settings.fingerprint()
    file.write_text(settings_file(wanted, finished_run, run, World(3).record(0).image, None))
    axes = ["--grid", "seed=3..4", "pool=inpainting,full-pool"]
    by_hand = drawn([*arguments[:-2], "--steps", "2", *arguments[-2:]], *axes)
    assert np.array_equal(drawn(["--settings", str(file), *arguments[-2:]], *axes), by_hand)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["seed=1", "seed=2"], "different settings"),
        (["seed=1", "steps=2", "pool=a"], "one or two"),
        (["seed=0..10", "steps=1,2,3,4,5,6,7,8,9,10"], "at most 100"),
        (["steps=0"], "--grid steps: expected more than 0, got '0'"),
        (["steps=1,1001"], "--grid steps: expected 1000 or less, got '1001'"),
        (["seed=x"], "--grid seed: expected a whole number, got 'x'"),
        (["seed=-2,1"], "--grid seed: expected 0 or more, got '-2'"),
        (["pool=editing"], "'editing'.*not finished"),
        (["pool=full-pool,all"], "no pool 'all'; expected one of .*full-pool, no-experts"),
        (["guidance=1,2"], "this base reads no guidance scale; leave guidance out"),
        (["seed=5", "--seed", "3"], "--seed and --grid seed=... both say the seed"),
        (["steps=5", "--steps", "3"], "--steps and --grid steps=... both say"),
        (["pool=control", "--as-of", "inpainting"], "--as-of and --grid pool=... both say"),
        (["pool=control", "--experts-off"], "--experts-off and --grid pool=... both say"),
        (["seed=1", "--guidance", "3"], "leave guidance out"),
    ],
)
def test_it_refuses_with_a_reason(
    arguments: list[str], grid: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--grid", *grid]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not Path(arguments[-1]).exists()
