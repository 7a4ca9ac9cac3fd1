"""Validation's rows, pictures and tracker events: the same examples, noise and times at every validation."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.cologen.data.opening import held_out_records
from recipes.cologen.report import cells
from recipes.cologen.runs.loading import load_base
from recipes.cologen.runs.reader import RunReader
from recipes.cologen.training.run import train
from recipes.cologen.training.trackers import TrackerError, check_trackers
from recipes.cologen.training.validation import schedule as validating
from recipes.cologen.training.validation.loss import TIMES, held_out_loss
from recipes.cologen.training.validation.sample_grid import CELL, GAP, LABEL
from recipes.cologen.training.validation.scores import held_out_examples
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_step import make_trained

__all__ = ["make_trained"]


@pytest.fixture(scope="module")
def finished(base_path, tmp_path_factory):
    """Two short stages, with all tasks seen so far validated twice in each."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    config = make_config(base_path, "validation.tasks=seen", "validation.every=2", "stages.*.steps=4")
    train(config, folder, "inpainting..grounding", Console(file=io.StringIO()))
    return folder


def rows(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["kind"] == "validation"]


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_row_tells_of_every_task_seen_so_far(finished):
    found = rows(finished)
    assert [(row["stage"], row["step"]) for row in found] == [
        ("inpainting", 2),
        ("inpainting", 4),
        ("grounding", 2),
        ("grounding", 4),
    ]
    last = found[-1]
    for name in ("scores", "loss", "loss_by_time", "share", "entropy", "task_usage"):
        assert list(last[name]) == ["grounding", "inpainting"], name
    assert last["times"] == list(TIMES) == [0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]
    for task in last["loss"]:
        assert last["loss"][task] == pytest.approx(np.mean(last["loss_by_time"][task]))
        assert 0 <= last["share"][task] <= 1
        assert 0 <= last["entropy"][task] <= np.log(2) + 1e-6
        assert np.sum(last["task_usage"][task], axis=1) == pytest.approx(np.ones(len(last["sites"])))
    assert found[0]["share"] == {"inpainting": 1.0} and found[0]["entropy"] == {"inpainting": 0.0}


def test_the_report_still_reads_the_rows(finished):
    assert len(RunReader(finished).validation_rows()) == 4


def test_every_validation_of_a_task_leaves_a_grid_of_the_same_examples(finished):
    names = sorted(path.name for path in (finished / "validation").iterdir())
    assert names == [
        "grounding-0000002-grounding.png",
        "grounding-0000002-inpainting.png",
        "grounding-0000004-grounding.png",
        "grounding-0000004-inpainting.png",
        "inpainting-0000002-inpainting.png",
        "inpainting-0000004-inpainting.png",
    ]
    early, late = (
        read(finished / "validation" / f"{stage}-0000004-inpainting.png")
        for stage in ("inpainting", "grounding")
    )
    assert early.shape == late.shape and early.shape[0] == 2 * (CELL + GAP + LABEL)
    assert np.array_equal(early[:, :264], late[:, :264])  # sources and targets
    assert not np.array_equal(early, late)  # what was drawn


def test_tensorboard_reads_back_what_was_sent(finished):
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/share", "train/skipped_steps"} <= set(tags["scalars"])
    sent = [(scalar.step, scalar.value) for scalar in events.Scalars("validation_loss/inpainting")]
    assert [step for step, _ in sent] == [2, 4, 6, 8]
    assert [value for _, value in sent] == pytest.approx(
        [row["loss"]["inpainting"] for row in rows(finished)]
    )
    assert {"validation_share/grounding", "validation_entropy/grounding"} <= set(tags["scalars"])
    pictures = events.Images("validation/grounding")
    assert [picture.step for picture in pictures] == [6, 8]
    with Image.open(finished / "validation/grounding-0000002-grounding.png") as grid:
        assert (pictures[0].width, pictures[0].height) == grid.size


def test_the_loss_is_the_same_again_whatever_the_batches_and_touches_nothing(make_trained):
    trained = make_trained()
    examples = held_out_examples_of("grounding")
    before = torch.get_rng_state()
    modes = [module.training for module in trained.model.transformer.modules()]
    first, again = (held_out_loss(trained, examples, seed=1, batch_size=4) for _ in range(2))
    assert first.by_time == again.by_time and len(set(first.by_time)) == len(TIMES)
    one_by_one = held_out_loss(trained, examples, seed=1, batch_size=1)
    assert one_by_one.by_time == pytest.approx(first.by_time, rel=1e-5)
    assert one_by_one.routing.share == pytest.approx(first.routing.share)
    assert held_out_loss(trained, examples, seed=2, batch_size=4).by_time != first.by_time
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in trained.model.transformer.modules()] == modes
    assert all(parameter.grad is None for parameter in trained.model.transformer.parameters())


def held_out_examples_of(task):
    from recipes.cologen.data.world import World

    return held_out_examples(World(9, held_out=True), task, 4, seed=2)


def test_a_loss_of_a_model_that_is_right_is_zero(make_trained, monkeypatch):
    trained, examples = make_trained(), held_out_examples_of("grounding")
    from recipes.cologen.flux.model import FluxModel
    from recipes.cologen.training.validation import loss as module

    velocities, original = [], module.interpolate

    def noting(*arguments):
        velocities.append(original(*arguments))
        return velocities[-1]

    def right(self, noise, timestep, text, source, **settings):
        FluxModel_velocity(self, noise, timestep, text, source, **settings)
        assert torch.equal(timestep, velocities[-1][1])
        return velocities[-1][2]

    FluxModel_velocity = FluxModel.velocity
    monkeypatch.setattr(module, "interpolate", noting)
    monkeypatch.setattr(FluxModel, "velocity", right)
    assert held_out_loss(trained, examples, seed=1, batch_size=4).loss == 0.0
    assert [times.unique().item() for _, times, _ in velocities] == pytest.approx(TIMES)


def test_losses_and_pictures_can_be_left_out(base_path, run, tmp_path):
    config = make_config(
        base_path, "validation.loss_samples=0", "validation.pictures=0", "logging.trackers=[]"
    )
    run(config, tmp_path / "run", "inpainting")
    assert "loss" not in rows(tmp_path / "run")[0]
    assert not (tmp_path / "run/validation").exists()
    assert not (tmp_path / "run/tensorboard").exists()


def test_own_validates_the_stage_alone(base_path):
    assert validating.validated_tasks(make_config(base_path), "control") == ("control",)
    seen = make_config(base_path, "validation.tasks=seen")
    assert validating.validated_tasks(seen, "control") == ("control", "grounding", "inpainting")


@pytest.mark.parametrize(
    ("name", "message"),
    [("wandb", "not installed: pip install wandb"), ("tensorbored", "accelerate knows .*tensorboard")],
)
def test_a_tracker_that_cannot_be_started_is_refused_before_anything_is_written(
    name, message, base_path, run, tmp_path, monkeypatch
):
    with pytest.raises(TrackerError, match=message):
        run(make_config(base_path, f"logging.trackers=[{name}]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_tensorboard_names_our_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrackerError, match=r"pip install 'prw\[cologen\]'.*metrics\.jsonl is written"):
        check_trackers(["tensorboard"])


def test_validation_and_report_draw_with_true_guidance_as_sampling_asks(base_path, tmp_path, monkeypatch):
    config = make_config(
        base_path, "sampling.true_cfg_scale=3", "sampling.negative_prompt=red", "stages.*.steps=1"
    )
    asked = []

    def spied(original):
        def evaluate(*given, **named):
            asked.append((named["true_cfg_scale"], named["negative_prompt"]))
            return original(*given, **named)

        return evaluate

    for owner in (validating, cells):
        monkeypatch.setattr(owner, "evaluate_task", spied(owner.evaluate_task))
    train(config, tmp_path / "run", "inpainting", Console(file=io.StringIO()))
    assert asked == [(3.0, "red")]
    run = RunReader(tmp_path / "run")
    scorer = cells.Scorer(load_base(config, torch.device("cpu")), run, held_out_records(config.data), n=2)
    cell = cells.Cell("inpainting", "inpainting", "full_pool")
    measured = scorer.measure([cell])[cell]
    assert asked == [(3.0, "red")] * 2
    assert (measured.conditions.true_cfg_scale, measured.conditions.negative_prompt) == (3.0, "red")
