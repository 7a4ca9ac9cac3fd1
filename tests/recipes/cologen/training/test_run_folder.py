"""A run's folder keeps its history, knows its own, and forgets only what it is told to."""

import json

import pytest

from recipes.cologen.errors import BaseModelError, RunFolderError
from recipes.cologen.training.run_folder import (
    DifferentConfigError,
    StageRecord,
    base_fingerprint,
    open_run,
)
from tests.recipes.cologen.training.conftest import make_config

NAMES = ("inpainting", "grounding", "control")


@pytest.fixture
def trained(config, tmp_path):
    """A folder that says that two stages are finished and the third has begun."""
    folder = open_run(tmp_path / "run", config, "base")
    for name in NAMES:
        status = "started" if name == "control" else "finished"
        folder.note(name, StageRecord(status=status, step=1, steps=2, seconds=1.0, updated="now"))
        if status == "finished":
            folder.finish(name, lambda path: path.mkdir(), {"stage": name})
    folder.latest.mkdir()
    return folder


def test_a_finished_stage_is_one_whose_folder_is_whole(trained):
    assert [trained.is_finished(name) for name in NAMES] == [True, True, False]
    (trained.stage("grounding") / "stage.json").unlink()
    assert not trained.is_finished("grounding")


def test_the_ledger_comes_back(trained, config):
    again = open_run(trained.path, config, "base")
    assert again.ledger == trained.ledger
    assert list(again.ledger.stages) == list(NAMES)


def test_a_restarted_stage_is_forgotten_with_all_after_it_and_may_change(trained, config, base_path):
    other = make_config(base_path, "stages.grounding.lr=0.5", "stages.control.steps=9")
    with pytest.raises(DifferentConfigError, match=r"stages\.grounding\.lr"):
        open_run(trained.path, other, "base")
    again = open_run(trained.path, other, "base", restart="grounding")
    assert [again.is_finished(name) for name in NAMES] == [True, False, False]
    assert not again.latest.exists()
    assert list(json.loads((trained.path / "ledger.json").read_text())["stages"]) == ["inpainting"]


def test_a_restart_that_is_refused_removes_nothing(trained, base_path):
    other = make_config(base_path, "stages.inpainting.lr=0.5")
    with pytest.raises(DifferentConfigError, match=r"stages\.inpainting\.lr"):
        open_run(trained.path, other, "base", restart="grounding")
    assert trained.is_finished("grounding")
    assert "grounding" in (trained.path / "ledger.json").read_text()


def test_opening_again_leaves_an_unchanged_config_untouched(trained, config, base_path):
    before = (trained.path / "config.yaml").stat().st_mtime_ns
    open_run(trained.path, config, "base")
    assert (trained.path / "config.yaml").stat().st_mtime_ns == before
    open_run(trained.path, make_config(base_path, "report.samples=77"), "base")
    assert "samples: 77" in (trained.path / "config.yaml").read_text()


def test_a_creation_that_was_cut_off_is_made_anew(config, tmp_path):
    open_run(tmp_path / "run", config, "base")
    (tmp_path / "run/config.yaml").unlink()
    assert open_run(tmp_path / "run", config, "base").ledger.stages == {}


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_broken_ledger_is_refused(trained, config, content):
    ledger = trained.path / "ledger.json"
    ledger.unlink() if content is None else ledger.write_text(content)
    with pytest.raises(RunFolderError, match=r"ledger\.json is missing or broken"):
        open_run(trained.path, config, "base")


def test_a_broken_config_is_refused(trained, config):
    (trained.path / "config.yaml").write_text("a: [")
    with pytest.raises(RunFolderError, match="is not YAML"):
        open_run(trained.path, config, "base")


def test_a_file_in_place_of_the_folder_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="not empty and is not a training run"):
        open_run(tmp_path / "run", config, "base")


def test_a_base_is_known_by_its_weights_and_not_by_its_place(base_path, tmp_path):
    first = base_fingerprint(base_path)
    weights = tmp_path / "transformer"
    weights.mkdir()
    for file in (base_path / "transformer").iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    assert base_fingerprint(tmp_path) == first
    file = next(weights.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert base_fingerprint(tmp_path) != first
    with pytest.raises(BaseModelError, match="restore it"):
        base_fingerprint(tmp_path / "absent")
