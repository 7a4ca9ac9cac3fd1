"""A run's folder keeps its history, knows its own, and forgets only what it is told to."""

import json

import pytest

from recipes.cologen.errors import BaseModelError, RunFolderError
from recipes.cologen.runs.checkpoint import StageState, write_state
from recipes.cologen.runs.config_changes import DifferentConfigError
from recipes.cologen.runs.folder import StageRecord, base_fingerprint, open_run
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
    write_state(folder.latest, StageState(stage="control", step=1), "abc")
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


def test_a_restart_keeps_an_earlier_stage_in_progress(config, tmp_path):
    folder = open_run(tmp_path / "run", config, "base")
    for name in ("inpainting", "grounding"):
        folder.note(name, StageRecord(status="started", step=1, steps=2, seconds=1.0, updated="now"))
    folder.latest.mkdir(parents=True)
    write_state(folder.latest, StageState(stage="inpainting", step=1), "abc")
    open_run(folder.path, config, "base", restart="grounding")
    assert (folder.latest / "state.json").is_file()
    open_run(folder.path, config, "base", restart="inpainting")
    assert not folder.latest.exists()


def test_a_stage_that_has_not_begun_is_not_restarted(config, tmp_path):
    with pytest.raises(RunFolderError, match="neither finished nor begun"):
        open_run(tmp_path / "run", config, "base", restart="control")
    assert not (tmp_path / "run").exists()
    folder = open_run(tmp_path / "run", config, "base")
    folder.note("inpainting", StageRecord(status="started", step=1, steps=2, seconds=1.0, updated="now"))
    with pytest.raises(RunFolderError, match=r"'grounding' of .* neither finished nor begun"):
        open_run(folder.path, config, "base", restart="grounding")


def test_the_base_may_lie_elsewhere_and_other_pictures_be_held_out(trained, config, base_path):
    other = make_config(base_path, "base.path=elsewhere", "data.held_out_seed=9", "data.held_out=folder:b")
    again = open_run(trained.path, other, "base")
    assert again.ledger == trained.ledger
    assert (trained.path / "config.yaml").read_text() == other.to_yaml()
    with pytest.raises(DifferentConfigError, match="trained on another base"):
        open_run(trained.path, config, "other weights")


def test_a_run_of_which_nothing_has_begun_takes_any_config(config, base_path, tmp_path):
    first = open_run(tmp_path / "run", make_config(base_path, "data.source=folder:typo"), "base")
    again = open_run(tmp_path / "run", config, "another base")
    assert again.ledger.base == "another base"
    assert again.ledger.fingerprint != first.ledger.fingerprint
    assert (tmp_path / "run/config.yaml").read_text() == config.to_yaml()
    assert open_run(tmp_path / "run", config, "another base").ledger == again.ledger


def test_what_was_trained_is_kept_though_the_ledger_has_lost_it(trained, base_path):
    ledger = json.loads((trained.path / "ledger.json").read_text())
    (trained.path / "ledger.json").write_text(json.dumps({**ledger, "stages": {}}))
    with pytest.raises(DifferentConfigError, match=r"pool\.rank"):
        open_run(trained.path, make_config(base_path, "pool.rank=8"), "base")


def test_restarting_the_first_stage_takes_any_config(trained, base_path):
    other = make_config(base_path, "pool.rank=8")
    again = open_run(trained.path, other, "base", restart="inpainting")
    assert not any(again.is_finished(name) for name in NAMES)
    assert "rank: 8" in (trained.path / "config.yaml").read_text()


def test_a_folder_that_cannot_be_made_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be the folder of a run: Not a directory"):
        open_run(tmp_path / "file" / "run", config, "base")


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


@pytest.mark.parametrize("content", [None, b"{", b"{}", b"\xff"])
def test_a_broken_ledger_is_refused(trained, config, content):
    ledger = trained.path / "ledger.json"
    ledger.unlink() if content is None else ledger.write_bytes(content)
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
