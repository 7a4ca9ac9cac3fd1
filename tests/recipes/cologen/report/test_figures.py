"""Curves, tables and heat-maps: drawn from whatever a run has, with labels a reader knows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.report.figures import (
    Usage,
    draw_tables,
    draw_training,
    draw_usage,
    draw_validation,
    short_site,
)
from recipes.cologen.runs.reader import RunReader


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def test_curves_are_drawn_for_one_stage_and_for_several(finished_run: Path, tmp_path: Path) -> None:
    rows = RunReader(finished_run).train_rows()
    one = pixels_of(draw_training([row for row in rows if row.stage == "control"], {}, tmp_path / "one.png"))
    several = pixels_of(draw_training(rows, {"control": 0.8}, tmp_path / "several.png"))
    assert several.shape[1] > 2 * one.shape[1]


def test_the_target_share_is_drawn(finished_run: Path, tmp_path: Path) -> None:
    rows = RunReader(finished_run).train_rows()
    without = pixels_of(draw_training(rows, {}, tmp_path / "without.png"))
    with_rho = pixels_of(draw_training(rows, {"control": 0.8}, tmp_path / "with.png"))
    assert without.shape == with_rho.shape and not np.array_equal(without, with_rho)


def test_the_same_numbers_give_the_same_file(finished_run: Path, tmp_path: Path) -> None:
    rows = RunReader(finished_run).validation_rows()
    first, second = (draw_validation(rows, tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_a_score_colours_its_cell(tmp_path: Path) -> None:
    low, high = (
        pixels_of(draw_tables({"all": {"control": {"control": score}}}, {"control": 0.0}, tmp_path / "t.png"))
        for score in (0.0, 1.0)
    )
    assert low.shape == high.shape
    assert (low != high).any(axis=-1).mean() > 0.1


def test_tables_may_have_gaps(tmp_path: Path) -> None:
    rows = {"control": {"control": 0.5}}
    assert draw_tables({"a": rows, "b": rows}, {"control": 0.1, "editing": 0.2}, tmp_path / "t.png").is_file()


@pytest.mark.parametrize("sites", [2, 57])
def test_heat_maps_are_drawn_for_small_and_large_models(tmp_path: Path, sites: int) -> None:
    names = [f"transformer_blocks.{number}.attn" for number in range(sites)]
    usage = Usage("control", names, ["inpainting", "control"], [[0.25, 0.75]] * sites)
    pixels = pixels_of(draw_usage([usage, usage], [usage, usage], tmp_path / "usage.png"))
    assert (pixels != 255).any(axis=-1).mean() > 0.1


def test_site_names_are_short() -> None:
    assert short_site("transformer_blocks.0.attn") == "double 0"
    assert short_site("single_transformer_blocks.12.attn") == "single 12"
    assert short_site("layers.3.self_attn") == "layers.3.self_attn"
