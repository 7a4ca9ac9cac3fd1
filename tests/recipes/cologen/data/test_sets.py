"""Data sets of the config: captions, columns, options and licences are checked; broken rows are named."""

import errno
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.content import set_content
from recipes.cologen.data.licences import PERMISSIVE, UNSTATED, is_allowed
from recipes.cologen.data.record import Record
from recipes.cologen.data.sets import DataSet, Mixture
from recipes.cologen.data.sources.tables import TableRows
from recipes.cologen.errors import BrokenPictureError, DataSetError
from tests.recipes.cologen.data.published import PICTURE, TEXT, parquet, picture, pixels, rectangle
from tests.recipes.cologen.data.published_tables import PUBLISHED


def own(folder, rows, **settings):
    path = parquet(folder, rows, {"image": PICTURE, "text": TEXT, "objects": TEXT})
    return SetSettings(layout="own", path=path, **settings)


def cat(**changes):
    return json.dumps([{"label": "cat", "bbox": [4, 6, 14, 18], **changes}])


def test_ones_own_table_has_the_columns_of_a_folders_lines(tmp_path):
    mask = Image.fromarray(rectangle(4, 6, 14, 18).astype(np.uint8) * 255)
    mask.save(tmp_path / "mask.png")
    rows = [{"image": picture(1), "text": " a cat ", "objects": cat(mask="mask.png")}]
    settings = own(tmp_path, rows, images=str(tmp_path), licence="CC0-1.0", revision="v2")
    record = DataSet("mine", settings, DataSettings(size=(12, 20))).record(0)
    assert record.caption == "a cat" and record.image.shape == (12, 20, 3)
    (item,) = record.objects
    assert item.box == (2, 3, 7, 9) and np.array_equal(item.mask, rectangle(4, 6, 14, 18)[::2, ::2])
    assert (record.origin.licence, record.origin.revision) == ("cc0-1.0", "v2")
    assert (record.origin.width, record.origin.height) == (40, 24)


def test_missing_captions_are_an_error_that_counts_them_unless_allowed(tmp_path):
    rows = [
        {"image": picture(n), "text": text, "objects": None} for n, text in enumerate(("a", "", None, "  "))
    ]
    settings = own(tmp_path, rows)
    with pytest.raises(
        DataSetError, match=r"3 of 4 rows have no caption.*example 1, 2, 3.*empty_captions=allow"
    ):
        DataSet("mine", settings, DataSettings())
    part = DataSet("mine", settings, DataSettings(empty_captions="allow"))
    assert [part.record(index).caption for index in range(4)] == ["a", "", "", ""]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (cat(bbox=[4, 6, 99, 18]), r"not inside the picture of 40x24"),
        (cat(bbox=None), "neither bbox nor mask"),
        (cat(mask="gone.png"), "gone.png cannot be decoded"),
        (cat(label=""), "an object: label: "),
        ("[3]", "not as the layout expects"),
        ("{", "not as the layout expects"),
    ],
)
def test_a_row_that_cannot_be_read_is_broken_and_named(tmp_path, objects, message):
    rows = [
        {"image": picture(1), "text": "a", "objects": None},
        {"image": picture(2), "text": "b", "objects": objects},
    ]
    part = DataSet("mine", own(tmp_path, rows), DataSettings())
    assert np.array_equal(part.record(0).image, pixels(1))
    with pytest.raises(BrokenPictureError, match=rf"^mine/1: .*{message}"):
        part.record(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "multigenn"}, r"layout is 'multigenn'; expected one of journeydb"),
        (
            {"layout": "omniedit"},
            r"has no column src_img, edited_img, edited_prompt_list.*it has image, text",
        ),
        ({"tasks": ("editing",)}, r"tasks asks for editing; the layout 'multigen' serves control"),
        ({"options": {"min_score": 3}}, r"'multigen' has no min_score; it has none"),
        ({"additions": "a.jsonl"}, r"'multigen' takes none"),
        ({"path": "folder:/tmp"}, r"'multigen' is not read from a folder"),
        ({"path": "parquet:/gone/*.parquet"}, "no file matches"),
    ],
)
def test_wrong_settings_are_refused_with_what_would_do(tmp_path, changes, message):
    settings = PUBLISHED["multigen"](tmp_path).model_copy(update=changes)
    with pytest.raises(DataSetError, match=rf"data\.sets\.mine.*{message}"):
        DataSet("mine", settings, DataSettings())


def test_a_set_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path):
    settings = PUBLISHED["omniedit"](tmp_path).model_copy(update={"options": {"min_score": 10}})
    with pytest.raises(DataSetError, match=r"no row is left of 2 \(2 score too low\)"):
        DataSet("mine", settings, DataSettings())


def test_boxes_and_masks_of_another_size_are_broken_rows(tmp_path):
    Image.fromarray(np.ones((5, 5), np.uint8)).save(tmp_path / "small.png")
    rows = [{"image": picture(1), "text": "a", "objects": cat(mask="small.png")}]
    part = DataSet("mine", own(tmp_path, rows, images=str(tmp_path)), DataSettings())
    with pytest.raises(
        BrokenPictureError, match=r"mine/0: the mask of 'cat' is 5x5 pixels, its picture 40x24"
    ):
        part.record(0)


@given(licence=st.sampled_from([*PERMISSIVE, "cc-by-nc-4.0", UNSTATED, "journeydb-terms"]))
def test_the_licence_filter_lets_through_what_it_names(licence):
    assert is_allowed(licence, "any")
    assert is_allowed(licence, "permissive") == (licence in PERMISSIVE)
    assert is_allowed(licence, (licence,)) and not is_allowed(licence, ("mine",))


class Numbered:
    """Stands for a data set of some records."""

    def __init__(self, name, length, repeat):
        self.name, self.length = name, length
        self.settings = SetSettings(layout="own", path="tar:x", repeat=repeat)

    def __len__(self):
        return self.length

    def record(self, index, task=None):
        assert 0 <= index < self.length
        return Record(f"{self.name}{index}", np.zeros((1, 1, 3), np.uint8), "")


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=4))
def test_an_epoch_of_a_mixture_has_every_record_as_often_as_its_set_repeats(shapes):
    parts = [Numbered(f"{place}-", length, repeat) for place, (length, repeat) in enumerate(shapes)]
    mixture = Mixture(parts)
    found = [mixture.record(index).id for index in range(len(mixture))]
    expected = [
        f"{part.name}{i}" for part in parts for _ in range(part.settings.repeat) for i in range(len(part))
    ]
    assert sorted(found) == sorted(expected)
    assert mixture.record(len(mixture) + 2 % len(mixture)).id == found[2 % len(mixture)]


def test_a_read_that_fails_says_nothing_about_the_row_and_is_kept_nowhere(tmp_path, monkeypatch):
    rows = [{"image": picture(1), "text": "a", "objects": None}]
    data = DataSettings(buckets={"index": str(tmp_path / "index")})
    part = DataSet("mine", own(tmp_path, rows), data)
    known = set_content(part)

    def fails(rows, index):
        raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer")

    with monkeypatch.context() as failing:
        failing.setattr(TableRows, "row", fails)
        for read in (part.record, part.picture_sizes, lambda task: set_content(part)):
            with pytest.raises(TimeoutError):
                read(0 if read == part.record else "control")
    assert part.picture_sizes("control").tolist() == [[24, 40, 24, 40]] and set_content(part) == known
