"""Training on pictures of many shapes: sizes are read from headers once, micro-batches are of one bucket."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.data import decoding, size_index
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sources import rows
from recipes.cologen.training import loop
from recipes.cologen.training.input.batches import Examples
from tests.recipes.cologen.training import test_on_files
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import WRITERS, arrow_cache, lines, png

__all__ = ["arrow_cache"]

BUCKETS = [[16, 24], [24, 16], [16, 16]]
SHAPES = [(32, 48), (32, 48), (60, 40), (33, 47), (40, 40), (48, 32)]
"""Height and width of each picture, as stored."""
AFTER = [(32, 48), (48, 32), (60, 40), (48, 32), (40, 40), (32, 48)]
"""Of the pictures after an edit."""
EXPECTED = {
    ((16, 24), (16, 24)): [0],
    ((24, 16), (16, 24)): [1, 3],
    ((24, 16), (24, 16)): [2],
    ((16, 16), (16, 16)): [4],
    ((16, 24), (24, 16)): [5],
}
"""Compound buckets of editing, target before source, and their records."""


def shaped_rows():
    """As the rows of test_on_files, in many shapes."""
    for number, (shape, after) in enumerate(zip(SHAPES, AFTER, strict=True)):
        rng = np.random.default_rng(number)
        mask = np.zeros(shape, np.uint8)
        mask[12:20, 12:22] = 255
        yield {
            "image": png(rng.integers(1, 256, (*shape, 3), dtype=np.uint8)),
            "mask": png(mask),
            "after": png(rng.integers(1, 256, (*after, 3), dtype=np.uint8)),
            "text": "red circle on tan",
            "pairs": [("customization", "the same object on navy"), ("editing", "make the circle blue")],
        }


@pytest.fixture
def make(base_path, tmp_path, monkeypatch):
    """Writes the files in a kind of source, and gives the run's config."""
    monkeypatch.setattr(test_on_files, "rows", shaped_rows)
    monkeypatch.setattr(
        test_on_files,
        "lines",
        lambda row, mask, after: {
            **lines(row, mask, after),
            "objects": [
                {"label": "red circle", "category": "circle", "bbox": [12, 12, 22, 20], "mask": mask}
            ],
        },
    )

    def settings(kind, *overrides):
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        buckets = [f"data.buckets.sizes={BUCKETS}", f"data.buckets.index={tmp_path / 'index'}"]
        written = WRITERS[kind](folder) if not list(folder.iterdir()) else paths[kind]
        paths[kind] = written
        return test_on_files.config(base_path, written, *buckets, *overrides)

    paths = {}
    return settings


def compound(settings):
    found = training_records(settings.data).stage("editing").bucketed("editing", settings.data.buckets)
    return {tuple(bucket): of.tolist() for bucket, of in zip(*found, strict=True)}


@pytest.mark.parametrize("kind", WRITERS)
def test_compound_buckets_from_every_kind_of_source_without_decoding_and_once(kind, make, monkeypatch):
    settings = make(kind)

    def refuse(*arguments):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(rows, "open_upright", refuse)
    assert compound(settings) == EXPECTED
    monkeypatch.setattr(rows, "upright_stand_in", refuse)
    assert compound(settings) == EXPECTED


def test_a_folder_as_the_one_source_has_the_same_buckets(make, base_path, tmp_path):
    make("folder")
    place = ["data.source=" + json.dumps(f"folder:{tmp_path / 'folder'}"), f"data.buckets.sizes={BUCKETS}"]
    assert compound(make_config(base_path, *place, "validation.samples=0")) == EXPECTED


def test_a_list_of_sizes_is_made_anew_when_files_or_sets_change(make, tmp_path):
    settings = make("folder")
    compound(settings)
    (known,) = (tmp_path / "index").iterdir()
    whole = known.read_bytes()
    known.write_bytes(whole[:50])
    assert compound(settings) == EXPECTED and known.read_bytes() == whole
    compound(make("folder", "data.sets.mine.revision=two"))
    assert len(list((tmp_path / "index").iterdir())) == 2
    text = (tmp_path / "folder/metadata.jsonl").read_text().splitlines()
    (tmp_path / "folder/metadata.jsonl").write_text("\n".join(reversed(text)))
    assert compound(settings)[(24, 16), (16, 24)] == [2, 4]


def test_upright_sizes_are_those_of_the_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "lying.jpg", exif=exif)
    sizes = {read(tmp_path / "lying.jpg").size for read in (decoding.open_upright, decoding.upright_stand_in)}
    assert sizes == {(20, 30)}


def test_a_stage_trains_on_micro_batches_of_one_bucket_and_resumes_bit_equal(
    make, tmp_path, run, stop_at, monkeypatch
):
    seen = []
    original = loop.train_step

    def watching(trained, stage, step, optimizer, micro):
        seen.extend((tuple(one.target.shape[2:]), tuple(one.source.shape[2:])) for one in micro)
        return original(trained, stage, step, optimizer, micro)

    stages = json.dumps({"editing": {**test_on_files.ROW, "steps": 6, "batch_size": 4}})
    settings = make("tar", f"stages={stages}", "data.buckets.group=2", "machine.micro_batch=2")
    monkeypatch.setattr(loop, "train_step", watching)
    assert run(settings, tmp_path / "through").complete
    monkeypatch.undo()
    assert len(seen) == 12 and set(seen) <= set(EXPECTED) and len(set(seen)) > 2
    stop_at(3)
    assert run(settings, tmp_path / "halted").stopped.step == 3
    assert run(settings, tmp_path / "halted").complete
    pools = [
        tmp_path / name / "checkpoints/editing/prw/adapter_model.safetensors"
        for name in ("through", "halted")
    ]
    assert pools[0].read_bytes() == pools[1].read_bytes()


def test_a_broken_picture_is_replaced_by_one_of_its_bucket(make, tmp_path):
    settings = make("folder")
    records = training_records(settings.data).stage("editing")
    bucketed = records.bucketed("editing", settings.data.buckets)
    whole = (tmp_path / "folder/1-image.png").read_bytes()
    (tmp_path / "folder/1-image.png").write_bytes(whole[: len(whole) // 2])
    number = [tuple(bucket) for bucket in bucketed.buckets].index(((24, 16), (16, 24)))
    examples = Examples(records.records, "editing", settings.dropout, bucketed)
    for seed in range(5):
        prepared = examples[loop.BatchSampler(6, batch_size=1, seed=0).at(0)._replace(
            record_index=1, seed=seed, bucket=number
        )]  # fmt: skip
        assert prepared.target.shape == (24, 16, 3) and prepared.source.shape == (16, 24, 3)
        assert prepared.skipped


def test_a_picture_that_was_exchanged_for_one_of_another_shape_is_skipped_with_the_reason(make, tmp_path):
    settings = make("folder")
    records = training_records(settings.data).stage("editing")
    bucketed = records.bucketed("editing", settings.data.buckets)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "folder/1-after.png")
    number = [tuple(bucket) for bucket in bucketed.buckets].index(((24, 16), (16, 24)))
    examples = Examples(records.records, "editing", settings.dropout, bucketed)
    draw = loop.BatchSampler(6, batch_size=1, seed=0).at(0)._replace(record_index=1, bucket=number)
    prepared = examples[draw]
    assert (
        "its bucket is 16x16 from 16x24, but by the list of picture sizes 24x16 from 16x24"
        in (prepared.skipped[0])
    )


def test_buckets_are_part_of_what_a_run_is_and_exclude_one_size_and_the_world(make, base_path):
    assert make("folder").fingerprint() != make("folder", "data.buckets.group=2").fingerprint()
    with pytest.raises(ConfigError, match=r"in place of data\.size"):
        make("folder", "data.size=[16,16]")
    with pytest.raises(ConfigError, match="not of the world"):
        make_config(base_path, "data.buckets.resolution=32")


def test_sizes_that_cannot_be_read_are_unknown(make, tmp_path):
    settings = make("folder")
    (tmp_path / "folder/4-image.png").write_bytes(b"no picture")
    sizes = training_records(settings.data).stage("editing").sizes("editing")
    assert tuple(sizes[4]) == size_index.UNKNOWN and all(sizes[0] == [32, 48, 32, 48])
