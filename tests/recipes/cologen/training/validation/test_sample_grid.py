"""Validation's grid: each picture of an example once, in order, the further sources among them."""

import numpy as np

from recipes.cologen.data.record import Example
from recipes.cologen.training.validation.sample_grid import CELL, LABEL, sample_grid

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (90, 90, 10), (10, 90, 90)]


def plain(colour, shape=(16, 16)):
    return np.full((*shape, 3), colour, np.uint8)


def test_all_sources_are_shown_before_target_and_output():
    first, second, third, target, output = map(plain, COLOURS)
    several = Example("a", "editing", "recolour", first, target, "blue", further=(second, third))
    alone = Example("b", "editing", "recolour", first, target, "blue")
    grid = sample_grid([several, alone], [output, output])
    lefts = []
    for number, colour in enumerate(COLOURS):
        lines, columns = np.nonzero((grid[: LABEL + CELL] == colour).all(axis=-1))
        assert len(lines) == CELL * CELL and lines.min() == LABEL, f"picture {number}"
        lefts.append(columns.min())
    assert lefts == sorted(lefts)
    for colour in (COLOURS[1], COLOURS[2]):
        assert not (grid[LABEL + CELL :] == colour).all(axis=-1).any()
    labels = grid[:LABEL, : lefts[-1] + CELL]
    for left in lefts:
        assert (labels[:, left : left + 30] < 100).any(), "a label is missing"
