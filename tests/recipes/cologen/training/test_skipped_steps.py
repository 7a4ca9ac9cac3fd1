"""A step whose loss or gradient is no number changes nothing, is counted and named; too many end the run."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from recipes.cologen.training import loop, step
from recipes.cologen.training.loop import DivergedError
from tests.recipes.cologen.training.conftest import make_config


@pytest.fixture
def poison(monkeypatch):
    """Spoil the loss, or only the gradient, of the n-th forwards from now on."""

    def arrange(*numbers, gradient=False):
        original, seen = step.batch_loss, []

        def spoilt(trained, stage, batch, encoded):
            loss, losses = original(trained, stage, batch, encoded)
            seen.append(batch)
            if len(seen) not in numbers:
                return loss, losses
            if gradient:
                loss.register_hook(lambda value: value * math.inf)
                return loss, losses
            return loss * math.nan, losses * torch.tensor([math.nan, 1, 1, 1])

        monkeypatch.setattr(step, "batch_loss", spoilt)
        return seen

    return arrange


def rows(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(folder, stage="inpainting"):
    return load_file(folder / "checkpoints" / stage / "prw/adapter_model.safetensors")


@pytest.mark.parametrize("gradient", [False, True])
def test_a_spoilt_step_touches_neither_weights_nor_optimiser(
    gradient, config, run, poison, tmp_path, monkeypatch
):
    poison(4, gradient=gradient)
    original, kept = loop.train_step, []

    def watching(trained, stage, number, optimizer, micro):
        before = [value.detach().clone() for value in trained.weave.trainable_parameters()]
        state = {key: dict(value) for key, value in optimizer.state_dict()["state"].items()}
        moments = [value["exp_avg"].clone() for value in state.values()]
        try:
            return original(trained, stage, number, optimizer, micro)
        finally:
            if number == 4:
                same = [
                    torch.equal(a, b)
                    for a, b in zip(before, trained.weave.trainable_parameters(), strict=True)
                ]
                after = [value["exp_avg"] for value in optimizer.state_dict()["state"].values()]
                kept.append(all(same) and all(map(torch.equal, moments, after)) and len(after) > 0)

    monkeypatch.setattr(loop, "train_step", watching)
    run(config, tmp_path / "run", "inpainting")
    assert kept == [True]
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_the_records_of_a_spoilt_batch_are_named_and_counted(base_path, run, poison, tmp_path):
    config = make_config(base_path, "machine.micro_batch=2")
    seen = poison(6)  # the second half of step 3
    run(config, tmp_path / "run", "inpainting")
    (row,) = rows(tmp_path / "run", "skipped")
    assert (row["step"], row["losses"], row["skipped_steps"]) == (3, ["nan"], 1)
    assert tuple(row["records"]) == seen[5].ids and len(seen[5].ids) == 2
    train = rows(tmp_path / "run", "train")
    assert [found["skipped_steps"] for found in train] == [0, 1, 1]
    assert all(math.isfinite(found["loss"]) for found in train)
    assert json.loads((tmp_path / "run/checkpoints/inpainting/stage.json").read_text())["skipped_steps"] == 1


def test_a_gradient_alone_that_is_no_number_names_the_whole_step(config, run, poison, tmp_path):
    seen = poison(2, gradient=True)
    run(config, tmp_path / "run", "inpainting")
    (row,) = rows(tmp_path / "run", "skipped")
    assert tuple(row["records"]) == seen[1].ids
    assert math.isfinite(row["losses"][0])


def test_a_window_of_nothing_but_skipped_steps_has_no_row(config, run, poison, tmp_path):
    poison(3, 4)
    run(config, tmp_path / "run", "inpainting")
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [2, 6]


def test_too_many_in_a_row_end_the_run_which_can_be_gone_on_with(config, run, poison, tmp_path, monkeypatch):
    poison(2, 3, 4, 5)
    with pytest.raises(
        DivergedError, match=r"(?s)at step 5.*number 4 in a row.*lower --set stages\.inpainting\.lr"
    ):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    outcome = run(config, tmp_path / "run", "inpainting")
    assert outcome.trained == ("inpainting",)


def test_one_good_step_starts_the_row_anew_but_not_the_count(base_path, run, poison, tmp_path):
    limits = ["optimizer.max_skipped_in_a_row=1", "optimizer.max_skipped=2"]
    poison(1, 3, 5)
    with pytest.raises(DivergedError, match=r"at step 5(.|\n)*1 in a row and 3 in the stage"):
        run(make_config(base_path, *limits), tmp_path / "run")


def test_none_allowed_ends_the_run_at_the_first(base_path, run, poison, tmp_path):
    seen = poison(2)
    config = make_config(base_path, "optimizer.max_skipped_in_a_row=0")
    with pytest.raises(DivergedError) as caught:
        run(config, tmp_path / "run")
    assert re.search(re.escape(seen[1].ids[0]), str(caught.value))


def test_a_run_with_skipped_steps_is_resumed_bit_for_bit(config, run, poison, stop_at, tmp_path, monkeypatch):
    poison(2, 3)
    run(config, tmp_path / "whole", "inpainting")
    monkeypatch.undo()
    poison(2, 3)
    original, calls = loop.train_step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "train_step", stopping)
    stopped = run(config, tmp_path / "run", "inpainting").stopped
    assert (stopped.step, stopped.skipped_steps, stopped.skipped_in_a_row) == (3, 2, 2)
    monkeypatch.undo()
    run(config, tmp_path / "run", "inpainting")
    pools = [weights(tmp_path / name) for name in ("whole", "run")]
    assert all(torch.equal(pools[0][name], pools[1][name]) for name in pools[0])
    assert rows(tmp_path / "run", "skipped") == rows(tmp_path / "whole", "skipped")


def test_how_many_may_be_skipped_is_no_part_of_what_a_run_is(base_path):
    one, other = make_config(base_path), make_config(base_path, "optimizer.max_skipped=0")
    assert one.fingerprint() == other.fingerprint()
