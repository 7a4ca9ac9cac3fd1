"""The example inputs: three forms, complete rows, pictures that are not square, and others to measure on."""

import numpy as np
import pytest

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.views import VIEWS
from recipes.cologen.tools.example_inputs import write_example_inputs

KINDS = ("parquet", "tar", "folder", "held_out")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    paths = write_example_inputs(tmp_path_factory.mktemp("inputs"), count=3, seed=4)
    assert tuple(paths) == KINDS
    return {
        kind: DataSet(kind, SetSettings(layout="own", path=path), DataSettings())
        for kind, path in paths.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", VIEWS)
def test_every_row_of_every_form_serves_every_task(opened, kind, task):
    assert len(opened[kind]) == 3
    for index in range(3):
        for seed in range(5):
            example = VIEWS[task](opened[kind].record(index), seed)
            assert example.source.shape == example.target.shape == (32, 48, 3) and example.prompt


def test_an_objects_mask_box_and_picture_fit_each_other(opened):
    for part in opened.values():
        record = part.record(0)
        (item,) = record.objects
        rows, columns = np.nonzero(item.mask)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == item.box
        assert len(np.unique(record.image[item.mask], axis=0)) == 1
        assert (record.depth[item.mask] > record.depth[~item.mask].max()).all()
        assert set(np.unique(record.segmentation[item.mask])) <= {1, 2, 3, 4}


def test_no_picture_is_there_twice(opened):
    pictures = [part.record(index).image.tobytes() for part in opened.values() for index in range(3)]
    captions = {part.record(index).caption for part in opened.values() for index in range(3)}
    assert len(set(pictures)) >= len(pictures) - 1 and len(captions) > 6
