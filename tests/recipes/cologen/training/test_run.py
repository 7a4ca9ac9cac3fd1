"""A run goes on where it was, bit for bit, and refuses what does not belong to it, losing nothing."""

import json
import shutil

import pytest
import torch

from recipes.cologen.config.run import load_config
from recipes.cologen.errors import BaseModelError, RunFolderError
from recipes.cologen.pipeline.pool import find_pool
from recipes.cologen.runs.checkpoint import ForeignCheckpointError
from recipes.cologen.runs.config_changes import DifferentConfigError
from recipes.cologen.runs.folder import StageOrderError
from recipes.cologen.runs.generation import generation_settings
from recipes.cologen.stages import UnknownStageError
from tests.recipes.cologen.training.conftest import STAGES, make_config

TOTAL = sum(stage["steps"] for stage in STAGES.values())


@pytest.fixture(scope="module")
def whole(base_path, tmp_path_factory):
    """The uninterrupted run."""
    import io

    from rich.console import Console

    from recipes.cologen.training.run import train

    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(base_path), folder, "all", Console(file=io.StringIO()))
    return folder


def pools(folder):
    """Bytes of the weights of every finished stage."""
    return {
        path.parent.parent.name: path.read_bytes()
        for path in folder.glob("checkpoints/*/prw/adapter_model.safetensors")
        if path.parent.parent.name != "latest"
    }


def rows(folder):
    """The metrics, but for the time they took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def training_state(folder):
    """What the last resumable checkpoint holds besides the pool."""
    return torch.load(folder / "checkpoints/latest/training.pt", weights_only=True)


def assert_same(first, second):
    """Nested tensors and values are equal, bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def assert_same_run(folder, whole):
    assert pools(folder) == pools(whole)
    assert rows(folder) == rows(whole)
    assert_same(training_state(folder), training_state(whole))


@pytest.mark.parametrize("step", [1, 6, 8, TOTAL - 1])
def test_a_run_stopped_and_gone_on_with_equals_one_that_was_not(step, config, run, stop_at, whole, tmp_path):
    stop_at(step)
    first = run(config, tmp_path / "run")
    assert first.stopped is not None
    assert not first.complete
    second = run(config, tmp_path / "run")
    assert second.stopped is None
    assert second.complete
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("step", [5, 7, 11])
def test_a_run_that_was_killed_equals_one_that_was_not(step, config, run, at_step, whole, tmp_path):
    def crash():
        raise RuntimeError("killed")

    at_step(step, crash)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "run")
    assert run(config, tmp_path / "run").complete
    assert_same_run(tmp_path / "run", whole)


def test_stages_one_by_one_equal_all_at_once(config, run, whole, tmp_path):
    for name in STAGES:
        run(config, tmp_path / "run", name)
    assert_same_run(tmp_path / "run", whole)


def test_another_seed_gives_another_run(base_path, run, whole, tmp_path):
    run(make_config(base_path, "data.seed=1"), tmp_path / "run", "inpainting")
    assert pools(tmp_path / "run")["inpainting"] != pools(whole)["inpainting"]


def test_settings_that_change_nothing_learnt_may_change_on_the_way(
    base_path, config, run, stop_at, whole, tmp_path
):
    stop_at(4)
    run(config, tmp_path / "run")
    other = make_config(base_path, "validation.samples=0", "machine.workers=1", "logging.checkpoint_every=50")
    assert run(other, tmp_path / "run").complete
    assert pools(tmp_path / "run") == pools(whole)
    assert "samples: 0" in (tmp_path / "run/config.yaml").read_text()


def test_finished_stages_are_left_alone(config, run, whole, at_step):
    def must_not_train():
        raise AssertionError("a finished stage was trained again")

    before = {path: path.stat().st_mtime_ns for path in whole.glob("checkpoints/**/*")}
    at_step(1, must_not_train)
    outcome = run(config, whole)
    assert (outcome.trained, outcome.stopped, outcome.complete) == ((), None, True)
    assert {path: path.stat().st_mtime_ns for path in whole.glob("checkpoints/**/*")} == before


def test_the_folder_holds_what_the_brief_promises(whole, tmp_path):
    for name in STAGES:
        summary = json.loads((whole / "checkpoints" / name / "stage.json").read_text())
        assert summary["experts"] == list(STAGES)[: len(summary["experts"])]
        assert 0 <= summary["share"] <= 1
        found = find_pool(shutil.copytree(whole / "checkpoints" / name / "prw", tmp_path / name))
        assert found.generation == generation_settings(
            load_config(whole / "config.yaml")
        )  # the pool tells it alone
    kinds = [row["kind"] for row in rows(whole)]
    assert kinds.count("train") == 3 + 3 + 2
    assert kinds.count("validation") == 2 + 2 + 1
    last = [row for row in rows(whole) if row["kind"] == "validation"][-1]
    assert last["experts"] == list(STAGES)
    assert torch.tensor(last["usage"]).shape == (len(last["sites"]), len(STAGES))
    ledger = json.loads((whole / "ledger.json").read_text())
    assert {name: stage["status"] for name, stage in ledger["stages"].items()} == dict.fromkeys(
        STAGES, "finished"
    )
    assert list((whole / "tensorboard").iterdir())


def test_the_first_stage_has_one_expert_so_all_goes_there(whole):
    shares = [row["share"] for row in rows(whole) if row["kind"] == "train" and row["stage"] == "inpainting"]
    assert shares == [1.0] * 3


def test_a_stage_out_of_order_is_refused_and_says_what_is_missing(config, run, tmp_path):
    with pytest.raises(
        StageOrderError, match=r"'control' builds on inpainting, grounding.*--stage inpainting\.\.control"
    ):
        run(config, tmp_path / "run", "control")


def test_an_unknown_stage_is_refused_before_anything_is_written(config, run, tmp_path):
    with pytest.raises(UnknownStageError, match="Did you mean 'control'"):
        run(config, tmp_path / "run", "controll")
    assert not (tmp_path / "run").exists()


def test_a_missing_base_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(BaseModelError, match=r"no FLUX base at .*absent.*--set base\.path"):
        run(make_config(tmp_path / "absent"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_config_is_refused_and_the_differing_fields_are_named(base_path, whole, run):
    before = (whole / "config.yaml").read_bytes()
    with pytest.raises(
        DifferentConfigError, match=r"pool\.rank: 4 there, 8 now(.|\n)*stages\.grounding\.lr: 0\.01 there"
    ):
        run(make_config(base_path, "pool.rank=8", "stages.grounding.lr=0.5"), whole)
    assert (whole / "config.yaml").read_bytes() == before


def test_a_stage_that_has_not_begun_may_get_other_settings(base_path, config, run, tmp_path):
    run(config, tmp_path / "run", "inpainting")
    other = make_config(base_path, "stages.grounding.steps=1")
    assert run(other, tmp_path / "run", "grounding").trained == ("grounding",)
    with pytest.raises(DifferentConfigError, match=r"stages\.grounding\.steps: 1 there, 6 now"):
        run(config, tmp_path / "run")


def test_another_base_is_refused(base_path, config, run, tmp_path, whole):
    other = tmp_path / "base"
    shutil.copytree(base_path, other)
    weights = next((other / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    text = (copy / "config.yaml").read_text().replace(str(base_path), str(other))
    (copy / "config.yaml").write_text(text)
    with pytest.raises(DifferentConfigError, match="trained on another base"):
        run(make_config(other), copy)


def test_a_folder_that_is_no_run_is_refused(config, run, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty and is not a training run"):
        run(config, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_log_of_the_command_may_lie_in_the_folder(config, run, tmp_path):
    (tmp_path / "train.log").write_text("")
    assert run(config, tmp_path, "inpainting").trained == ("inpainting",)


def test_checkpoints_of_another_run_are_refused(base_path, config, run, stop_at, whole, tmp_path):
    stop_at(7)
    run(config, tmp_path / "run")
    other = make_config(base_path, "data.seed=5")
    run(other, tmp_path / "other", "inpainting")
    shutil.copytree(
        tmp_path / "run/checkpoints/latest", tmp_path / "other/checkpoints/latest", dirs_exist_ok=True
    )
    with pytest.raises(ForeignCheckpointError, match="latest belongs to another run"):
        run(other, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/checkpoints")
    shutil.copytree(whole / "checkpoints/inpainting", tmp_path / "other/checkpoints/inpainting")
    with pytest.raises(ForeignCheckpointError, match="inpainting belongs to another run"):
        run(other, tmp_path / "other")


def test_a_damaged_pool_says_what_to_remove_or_to_train_again(config, run, stop_at, tmp_path):
    stop_at(7)
    run(config, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    finished = next(path.name for path in checkpoints.iterdir() if path.name != "latest")
    for folder, fix in (("latest", r"Remove .*latest to start stage"), (finished, f"--restart {finished}")):
        weights = checkpoints / folder / "prw" / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:50])
        with pytest.raises(ForeignCheckpointError, match=fix):
            run(config, tmp_path / "run")
        if folder == "latest":
            shutil.rmtree(checkpoints / "latest")  # what the message says


def test_stages_in_another_order_are_refused(base_path, config, run, tmp_path):
    run(config, tmp_path / "run", "inpainting..grounding")
    stages = {name: STAGES[name] for name in ("grounding", "inpainting", "control")}
    from recipes.cologen.config.run import parse_config

    turned = parse_config(
        {
            **config.model_dump(),
            "stages": {name: {**config.stages[name].model_dump(), "init": "zero"} for name in stages},
        }
    )
    with pytest.raises(DifferentConfigError, match="the config begins with grounding, inpainting"):
        run(turned, tmp_path / "run")
