"""A stage reads no more of a picture than it needs, and makes the very same examples of it."""

import numpy as np
import pytest

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.sets import DataSet, Mixture
from recipes.cologen.data.sources import rows
from recipes.cologen.data.views import VIEWS
from tests.recipes.cologen.data.test_folder import folder

__all__ = ["folder"]

UNUSED = {
    "inpainting": ["black.png", "depth.png", "classes.png"],
    "grounding": ["black.png", "depth.png", "classes.png"],
    "control": ["black.png", "mask.png"],
    "customization": ["mask.png", "depth.png", "classes.png"],
    "editing": ["mask.png", "depth.png", "classes.png"],
}


def alike(one, other):
    assert np.array_equal(one.source, other.source) and np.array_equal(one.target, other.target)
    assert (one.prompt, one.kind, one.id, one.fixed) == (other.prompt, other.kind, other.id, other.fixed)


@pytest.mark.parametrize("task", VIEWS)
def test_a_folder_read_for_one_task_makes_the_same_examples_and_leaves_the_rest_alone(task, folder):
    whole = PictureFolder(folder)
    one = whole.for_task(task)
    expected = [VIEWS[task](whole.record(0), seed) for seed in range(8)]
    for name in UNUSED[task]:
        (folder / name).write_bytes(b"no picture")
    for seed, example in enumerate(expected):
        alike(VIEWS[task](one.record(0), seed), example)


@pytest.mark.parametrize("task", VIEWS)
def test_a_set_read_for_one_task_makes_the_same_examples_and_decodes_no_more(task, folder, monkeypatch):
    settings = SetSettings(layout="own", path=f"json:{folder}/metadata.jsonl")
    dataset = DataSet("mine", settings, DataSettings())
    opened = []
    original = rows.open_upright
    monkeypatch.setattr(rows, "open_upright", lambda path: opened.append(path.name) or original(path))
    for seed in range(4):
        expected = VIEWS[task](dataset.record(0), seed)
        opened.clear()
        alike(VIEWS[task](Mixture([dataset], task).record(0), seed), expected)
        assert not set(opened) & set(UNUSED[task]) and "cat.png" in opened
