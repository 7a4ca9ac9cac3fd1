"""Training reads parquet, tar shards and folders of pictures that are not square, through the config."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
import webdataset
import yaml
from PIL import Image
from rich.console import Console

from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.errors import DataSetError, FolderDataError
from recipes.cologen.runs.config_changes import DifferentConfigError
from recipes.cologen.training import loop
from recipes.cologen.training.input.batches import batches
from recipes.cologen.training.run import train
from tests.recipes.cologen.training.conftest import make_config

WIDTH, HEIGHT = 24, 16
COUNT = 6


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def rows():
    """Described pictures with a masked object and a pair for each of the last two stages, as bytes."""
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        before, after = rng.integers(1, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:12, 6:18] = 255
        yield {
            "image": png(before),
            "mask": png(mask),
            "after": png(after),
            "text": "red circle on tan",
            "pairs": [("customization", "the same object on navy"), ("editing", "make the circle blue")],
        }


def lines(row, mask, after):
    objects = [{"label": "red circle", "category": "circle", "bbox": [6, 4, 18, 12], "mask": mask}]
    pairs = [{"task": task, "image": after, "prompt": prompt} for task, prompt in row["pairs"]]
    return {"text": row["text"], "objects": objects, "pairs": pairs}


def write_parquet(folder):
    stored = [{"image": row["image"], **lines(row, row["mask"], row["after"])} for row in rows()]
    datasets.Dataset.from_list(stored).to_parquet(folder / "a.parquet")
    return f"parquet:{folder}/a.parquet"


def write_tar(folder):
    with webdataset.ShardWriter(f"{folder}/part-%02d.tar", maxcount=4, verbose=0) as shards:
        for number, row in enumerate(rows()):
            sample = {"__key__": f"{number:03}", "png": row["image"], "mask.png": row["mask"]}
            shards.write({**sample, "after.png": row["after"], "json": lines(row, "mask.png", "after.png")})
    return f"tar:{folder}/part-*.tar"


def write_folder(folder):
    text = []
    for number, row in enumerate(rows()):
        for name in ("image", "mask", "after"):
            (folder / f"{number}-{name}.png").write_bytes(row[name])
        line = {"file_name": f"{number}-image.png", **lines(row, f"{number}-mask.png", f"{number}-after.png")}
        text.append(json.dumps(line) + "\n")
    (folder / "metadata.jsonl").write_text("".join(text))
    return f"folder:{folder}"


WRITERS = {"parquet": write_parquet, "tar": write_tar, "folder": write_folder}
ROW = {"steps": 2, "batch_size": 2, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}
STAGES = dict.fromkeys(("inpainting", "control", "editing"), ROW)


def config(base_path, path, *overrides):
    stages = ["stages=" + json.dumps(STAGES)]
    data = ["data.source=sets", "data.sets.mine.layout=own", f"data.sets.mine.path={path}"]
    return make_config(base_path, *stages, *data, "validation.samples=0", *overrides)


@pytest.mark.parametrize("kind", WRITERS)
def test_two_steps_of_every_stage_from_every_kind_of_source(kind, base_path, tmp_path, run, monkeypatch):
    source = tmp_path / "data"
    source.mkdir()
    seen = []
    original = loop.train_step

    def watching(trained, stage, step, optimizer, micro):
        seen.extend(micro)
        return original(trained, stage, step, optimizer, micro)

    monkeypatch.setattr(loop, "train_step", watching)
    held_out = ["data.held_out=sets", "data.held_out_sets.other.layout=own", "validation.samples=1"]
    held_out += [
        f"data.held_out_sets.other.path={WRITERS[kind](source)}",
        "data.held_out_sets.other.repeat=2",
    ]
    outcome = run(config(base_path, WRITERS[kind](source), *held_out), tmp_path / "run")
    assert outcome.complete and outcome.trained == ("inpainting", "control", "editing")
    assert len(seen) == 6
    assert {tuple(batch.target.shape) for batch in seen} == {(2, 3, HEIGHT, WIDTH)}
    targets = {png(np.ascontiguousarray(one.permute(1, 2, 0).numpy())) for one in seen[-1].target}
    assert targets <= {row["after"] for row in rows()}
    card = json.loads((tmp_path / "run/data_card.json").read_text())
    (facts,) = card["sets"]
    assert (facts["rows"], facts["records"], facts["licence"], facts["commercial_use"]) == (
        6,
        6,
        "unstated",
        False,
    )
    assert card["stages"]["editing"] == {"records": 6, "shares": {"mine": 1.0}}
    page = (tmp_path / "run/data_card.md").read_text()
    assert "| mine | own |" in page and "| unstated | 6 | none | 6 |" in page
    assert not (tmp_path / "run/skipped.jsonl").exists()


def damaged_folder(folder, torn):
    path = write_folder(folder)
    for number in torn:
        whole = (folder / f"{number}-image.png").read_bytes()
        (folder / f"{number}-image.png").write_bytes(whole[: len(whole) // 2])
    return path


def test_a_broken_picture_is_skipped_and_listed_and_a_resumed_run_ends_alike(
    base_path, tmp_path, run, stop_at
):
    (tmp_path / "data").mkdir()
    path = damaged_folder(tmp_path / "data", [2])
    settings = config(base_path, path, "data.max_broken=0.3", "stages.*.steps=6")
    run(settings, tmp_path / "through", "inpainting")
    stop_at(3)
    assert run(settings, tmp_path / "halted", "inpainting").stopped.step == 3
    run(settings, tmp_path / "halted", "inpainting")
    pools = [
        tmp_path / name / "checkpoints/inpainting/prw/adapter_model.safetensors"
        for name in ("through", "halted")
    ]
    assert pools[0].read_bytes() == pools[1].read_bytes()
    problem = "2-image.png cannot be decoded"
    assert problem in (tmp_path / "through/skipped.jsonl").read_text()


def test_too_many_broken_pictures_are_refused_before_the_first_step(base_path, tmp_path):
    (tmp_path / "data").mkdir()
    settings = config(base_path, damaged_folder(tmp_path / "data", [1, 4]))
    with pytest.raises(
        FolderDataError, match=r"(?s)any stage, record 2: mine/metadata.*1-image\.png.*record 5"
    ):
        train(settings, tmp_path / "run", "all", Console(file=io.StringIO()))
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_stage_without_a_set_is_refused_before_the_first_step(base_path, tmp_path):
    (tmp_path / "data").mkdir()
    settings = config(base_path, write_folder(tmp_path / "data"), "data.sets.mine.tasks=[control]")
    with pytest.raises(DataSetError, match="no data set serves stage 'inpainting'"):
        train(settings, tmp_path / "run", "all", Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_sets_are_part_of_what_a_run_is(base_path, tmp_path):
    first, second = (config(base_path, path) for path in ("folder:a", "folder:b"))
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == config(base_path, "folder:a", "data.max_broken=0.5").fingerprint()


@pytest.mark.parametrize("kind", WRITERS)
def test_workers_read_what_one_process_reads(kind, base_path, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(4))  # else torch warns on few cores
    source = training_records(config(base_path, WRITERS[kind](tmp_path)).data).stage("editing")
    drawn = []
    for workers in (0, 2):
        sampler = BatchSampler(source.num_records, batch_size=2, seed=3)
        stream = batches(source.records, "editing", sampler, DropoutSettings(text=0, source=0), workers)
        drawn.append([next(stream) for _ in range(4)])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one.target, other.target) and torch.equal(one.source, other.source)
        assert (one.prompts, one.seeds) == (other.prompts, other.seeds)


def test_a_run_that_is_older_than_a_setting_goes_on(base_path, tmp_path, run):
    (tmp_path / "data").mkdir()
    settings = config(base_path, write_folder(tmp_path / "data"))
    run(settings, tmp_path / "run", "inpainting")
    file = tmp_path / "run/config.yaml"
    stored = yaml.safe_load(file.read_text())
    for younger in ("empty_captions", "licence", "max_broken"):
        del stored["data"][younger]
    file.write_text(yaml.safe_dump(stored))
    assert run(settings, tmp_path / "run", "control").trained == ("control",)
    changed = config(base_path, settings.data.sets["mine"].path, "data.empty_captions=allow")
    with pytest.raises(DifferentConfigError, match=r"data\.empty_captions: 'refuse' there, 'allow' now"):
        run(changed, tmp_path / "run", "editing")
