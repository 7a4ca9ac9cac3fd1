"""Replay mixes tasks into a batch: what could not be stacked is refused at the start, and truly fails."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.errors import PictureError
from recipes.cologen.stages import PAIRED_TASKS
from tests.recipes.cologen.training.conftest import make_config

ROW = {"steps": 3, "batch_size": 4, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}


def write_set(folder, task, size, further=0):
    """Four pictures of one size with a pair for a task, which has so many further sources."""
    folder.mkdir()
    lines = []
    for number in range(4):
        names = [f"{number}-{place}.png" for place in range(further + 2)]
        for place, name in enumerate(names):
            pixels = np.random.default_rng((number, place)).integers(1, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        pair = {"task": task, "image": names[1], "prompt": "make the circle blue", "sources": names[2:]}
        pairs = [pair] if task in PAIRED_TASKS else []
        lines.append(json.dumps({"file_name": names[0], "text": "red circle on tan", "pairs": pairs}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def asked(base_path, tmp_path):
    """Settings of a run of two stages on two sets, the second of which replays the first."""

    def settings(first, second, sizes, further, *overrides):
        rows = {first: ROW, second: {**ROW, "replay": {first: 0.5}}}
        sets = ["data.source=sets"]
        for task, size, more in zip(rows, sizes, further, strict=True):
            folder = tmp_path / task
            path = folder if folder.exists() else write_set(folder, task, size, more)
            name = f"data.sets.{task}"
            sets += [f"{name}.layout=own", f"{name}.path=folder:{path}", f"{name}.tasks=[{task}]"]
        given = ["stages=" + json.dumps(rows), *sets, "validation.samples=0", *overrides]
        return make_config(base_path, *given)

    return settings


def forced(config):
    """The same with whole batches, past the checks of a config."""
    return config.model_copy(update={"machine": config.machine.model_copy(update={"micro_batch": None})})


TWO_SIZES = ("control", "editing", [(16, 16), (16, 24)], [0, 0])
TWO_COUNTS = ("customization", "editing", [(16, 24), (16, 24)], [1, 0], "data.size=[16,24]")


@pytest.mark.parametrize(
    ("case", "setting", "failure"),
    [
        (TWO_SIZES, r"data\.size=\[512,512\]", "differ in size"),
        ((*TWO_COUNTS, "data.max_sources=2"), r"data\.max_sources", "how many source pictures"),
    ],
)
def test_what_is_refused_fails_and_with_one_at_a_time_it_works(case, setting, failure, asked, tmp_path, run):
    with pytest.raises(ConfigError, match=rf"stages\.editing\.replay(.|\n)*{setting}") as refusal:
        asked(*case)
    assert "machine.micro_batch=1" in str(refusal.value)
    works = asked(*case, "machine.micro_batch=1")
    assert run(works, tmp_path / "run").complete
    with pytest.raises(PictureError, match=failure):
        run(forced(works), tmp_path / "forced")


def test_one_size_mends_it(asked, tmp_path, run):
    assert run(asked(*TWO_SIZES, "data.size=[16,16]"), tmp_path / "run").complete


def test_tasks_that_never_have_further_sources_may_be_mixed_beside_others_that_do(base_path):
    places = ["data.source=folder:x", "data.size=[16,16]", "data.max_sources=2", "validation.samples=0"]
    rows = {"inpainting": ROW, "control": {**ROW, "replay": {"inpainting": 0.5}}, "customization": ROW}
    make_config(base_path, "stages=" + json.dumps(rows), *places)
    rows["customization"] = {**ROW, "replay": {"control": 0.5}}
    with pytest.raises(ConfigError, match=r"data\.max_sources=2 lets those of customization have more"):
        make_config(base_path, "stages=" + json.dumps(rows), *places)


def test_batches_of_one_and_the_world_need_nothing(base_path):
    folder = ["data.source=folder:x", "validation.samples=0"]
    replay = "stages.grounding.replay={inpainting: 0.5}"
    make_config(base_path, replay)
    make_config(base_path, replay, *folder, "stages.grounding.batch_size=1")
    with pytest.raises(ConfigError, match=r"stages\.grounding\.replay"):
        make_config(base_path, replay, *folder)
