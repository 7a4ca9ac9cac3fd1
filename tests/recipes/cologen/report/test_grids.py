"""The grid of examples: every picture is in it, as squares, and right and wrong can be told apart."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from recipes.cologen.report.figures import RIGHT, WRONG
from recipes.cologen.report.grids import GridRow, draw_grid


def plain(*colour: int, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.full((*shape, 3), colour, dtype=np.uint8)


SOURCE, TARGET, OUTPUT, BASE = plain(10, 20, 30), plain(40, 50, 60), plain(70, 80, 90), plain(1, 99, 200)


def drawn(path: Path, *rows: GridRow) -> np.ndarray:
    with Image.open(draw_grid("title", rows, path)) as opened:
        return np.asarray(opened.convert("RGB"))


def area(pixels: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((pixels == np.array(colour)).all(axis=-1).sum())


def row(right: bool | None = True, base_right: bool | None = True, prompt: str = "red") -> GridRow:
    return GridRow(prompt, "kind", SOURCE, TARGET, OUTPUT, right, BASE, base_right)


def frame(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


def test_every_picture_is_shown_large_and_alike(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", row(), row())
    areas = [area(pixels, tuple(picture[0, 0])) for picture in (SOURCE, TARGET, OUTPUT, BASE)]
    assert min(areas) > 2 * 100 * 100 and max(areas) < 1.15 * min(areas)


@pytest.mark.parametrize(("right", "seen", "unseen"), [(True, RIGHT, WRONG), (False, WRONG, RIGHT)])
def test_right_and_wrong_have_their_frames(tmp_path: Path, right: bool, seen: str, unseen: str) -> None:
    pixels = drawn(tmp_path / "grid.png", row(right, right))
    assert area(pixels, frame(seen)) > 500 and area(pixels, frame(unseen)) == 0


def test_no_frame_where_no_oracle_judged(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", row(None, None))
    assert area(pixels, frame(RIGHT)) == area(pixels, frame(WRONG)) == 0


def test_every_source_is_shown_in_a_column_of_its_own(tmp_path: Path) -> None:
    second, third = plain(200, 10, 10), plain(10, 200, 10)
    pixels = drawn(tmp_path / "grid.png", row()._replace(further=(second, third)), row())
    places = []
    for picture in (SOURCE, second, third, TARGET, OUTPUT, BASE):
        lines, columns = np.nonzero((pixels == picture[0, 0]).all(axis=-1))
        assert np.ptp(columns) > 80 and np.ptp(lines) > 80
        places.append((columns.min(), columns.max()))
    assert all(before[1] < after[0] for before, after in pairwise(places))


@pytest.mark.parametrize("prompt", ["", "$x_1$ & <b>", "$", "a\nb", "word " * 40])
def test_any_prompt_can_be_written(tmp_path: Path, prompt: str) -> None:
    blank = drawn(tmp_path / "blank.png", row(prompt=" "))
    assert drawn(tmp_path / "grid.png", row(prompt=prompt)).shape == blank.shape


def test_a_picture_that_is_not_square_keeps_its_shape(tmp_path: Path) -> None:
    wide = row()._replace(source=plain(200, 10, 10, shape=(8, 16)))
    pixels = drawn(tmp_path / "grid.png", wide)
    lines, columns = np.nonzero((pixels == (200, 10, 10)).all(axis=-1))
    assert np.ptp(columns) / np.ptp(lines) == pytest.approx(2, rel=0.05)
