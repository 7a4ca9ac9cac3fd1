"""Pairs with several source pictures: read, stacked, trained on, validated, drawn with; else refused."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.data.sets import DataSet
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import DataSetError, FolderDataError, PictureError
from recipes.cologen.generate import main as draw_picture
from recipes.cologen.training import step as step_module
from recipes.cologen.training.input.batches import batches, withhold
from tests.recipes.cologen.training.conftest import make_config

HEIGHT, WIDTH = 16, 24
ROW = {"steps": 2, "batch_size": 2, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}


def write_folder(folder, counts):
    """Pictures with a customization pair, which has so many sources beside the first."""
    folder.mkdir()
    lines = []
    for number, count in enumerate(counts):
        names = [f"{number}-{place}.png" for place in range(count + 2)]
        for place, name in enumerate(names):
            pixels = np.random.default_rng((number, place)).integers(
                1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / name)
        pair = {"task": "customization", "image": names[1], "prompt": "the same object on navy"}
        if count:
            pair["sources"] = names[2:]
        lines.append(json.dumps({"file_name": names[0], "text": "red circle", "pairs": [pair]}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def pixels_of(path):
    return np.asarray(Image.open(path))


def config_of(base_path, folder, *overrides):
    stages = ["stages=" + json.dumps({"customization": ROW})]
    places = [f"data.source=folder:{folder}", "data.max_sources=3", "dropout.source=0"]
    return make_config(base_path, *stages, *places, "validation.samples=0", *overrides)


def stream(config, micro_batch=2):
    source = training_records(config.data).stage("customization")
    sampler = BatchSampler(source.num_records, batch_size=2, micro_batch=micro_batch, seed=0)
    return batches(source.records, "customization", sampler, config.dropout)


def test_folder_and_tables_read_further_sources_in_order(tmp_path):
    folder = write_folder(tmp_path / "two", [2, 2])
    own = SetSettings(layout="own", path=f"folder:{folder}")
    for size in (None, (32, 48)):
        for records in (
            PictureFolder(folder, size, max_sources=3),
            DataSet("own", own, DataSettings(max_sources=3, size=size)),
        ):
            example = VIEWS["customization"](records.record(0), 0)
            assert [one.shape for one in example.further] == [(*(size or (HEIGHT, WIDTH)), 3)] * 2
            if size is None:
                for place, picture in enumerate(example.further, start=2):
                    assert np.array_equal(picture, pixels_of(folder / f"0-{place}.png"))


def test_more_sources_than_allowed_are_an_error_that_says_the_setting(tmp_path):
    folder = write_folder(tmp_path / "two", [1])
    with pytest.raises(DataSetError, match=r"has 2 source pictures, but .*max_sources is 1.*max_sources=2"):
        PictureFolder(folder).record(0)
    with pytest.raises(DataSetError, match="max_sources is 1"):
        DataSet("own", SetSettings(layout="own", path=f"folder:{folder}"), DataSettings()).record(0)
    (folder / "0-2.png").unlink()
    with pytest.raises(FolderDataError, match=r"there is no file 0-2\.png"):
        PictureFolder(folder, max_sources=2)


def test_a_batch_stacks_each_place_and_refuses_what_cannot_be_stacked(base_path, tmp_path):
    batch = next(stream(config_of(base_path, write_folder(tmp_path / "two", [2, 2]))))
    assert [one.shape for one in batch.further] == [batch.source.shape] * 2
    mixed = config_of(base_path, write_folder(tmp_path / "mixed", [0, 1]))
    with pytest.raises(PictureError, match=r"differ in how many source pictures.*micro_batch=1"):
        next(stream(mixed))
    assert {len(next(stream(mixed, micro_batch=1)).further) for _ in range(1)} <= {0, 1}


def test_a_withheld_source_is_black_in_every_place(tmp_path):
    record = PictureFolder(write_folder(tmp_path / "two", [2]), max_sources=3).record(0)
    dropped = withhold(VIEWS["customization"](record, 0), 0, DropoutSettings(source=1, text=0))
    assert len(dropped.further) == 2 and not any(one.any() for one in (dropped.source, *dropped.further))


def test_runs_train_validate_and_draw_on_several_sources(base_path, tmp_path, run, monkeypatch):
    folder, seen, original = write_folder(tmp_path / "two", [1, 1, 1]), [], step_module.encode

    def watching(trained, batch):
        seen.append(original(trained, batch))
        return seen[-1]

    monkeypatch.setattr(step_module, "encode", watching)
    held_out = write_folder(tmp_path / "held", [1, 0, 1])
    validated = [f"data.held_out=folder:{held_out}", "validation.samples=3"]
    assert run(config_of(base_path, folder, *validated), tmp_path / "run").complete
    assert seen and all(
        len(one.sources) == 2 and one.sources[0].tokens.shape == one.sources[1].tokens.shape for one in seen
    )
    words = ["--task", "customization", "--prompt", "the same object on navy", "--native"]
    drawn = {}
    for name, also in (("one", []), ("two", ["--also", str(folder / "0-2.png")])):
        files = ["--image", str(folder / "0-0.png"), *also, "--output", str(tmp_path / f"{name}.png")]
        assert draw_picture(["--checkpoint", str(tmp_path / "run"), *files, *words]) == 0
        drawn[name] = pixels_of(tmp_path / f"{name}.png")
    assert not np.array_equal(drawn["one"], drawn["two"])
    many = ["--also", *[str(folder / "0-2.png")] * 3, "--output", str(tmp_path / "many.png")]
    first = ["--checkpoint", str(tmp_path / "run"), "--image", str(folder / "0-0.png")]
    assert draw_picture([*first, *many, *words]) == 1 and not (tmp_path / "many.png").exists()


def test_a_second_source_reaches_the_loss(base_path, tmp_path, run):
    weights = {}
    for name, counts in (("two", [1, 1]), ("one", [0, 0])):
        folder = write_folder(tmp_path / name, counts)
        assert run(config_of(base_path, folder), tmp_path / f"{name}-run").complete
        path = tmp_path / f"{name}-run/checkpoints/customization/prw/adapter_model.safetensors"
        weights[name] = path.read_bytes()
    assert weights["one"] != weights["two"]
