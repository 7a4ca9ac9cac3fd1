"""A stage stops at a loss that is no number, and refuses a checkpoint that does not fit."""

import pytest
import torch

from recipes.cologen.training import loop
from recipes.cologen.training.checkpoint import ForeignCheckpointError
from recipes.cologen.training.loop import DivergedError
from recipes.cologen.training.step import StepLosses


def test_a_loss_that_is_no_number_ends_the_run_at_its_last_checkpoint(config, run, monkeypatch, tmp_path):
    original, steps = loop.train_step, 0

    def diverging(*arguments):
        nonlocal steps
        steps += 1
        measured = original(*arguments)
        return measured if steps < 4 else StepLosses(float("nan"), 0.0, 1.0, 1.0)

    monkeypatch.setattr(loop, "train_step", diverging)
    with pytest.raises(DivergedError, match=r"became nan at step 4.*lower --set stages\.inpainting\.lr"):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    assert run(config, tmp_path / "run").complete


def test_an_optimiser_of_other_parameters_or_processes_is_refused(config, run, stop_at, tmp_path):
    stop_at(2)
    run(config, tmp_path / "run")
    file = tmp_path / "run/checkpoints/latest/training.pt"
    values = torch.load(file, weights_only=True)
    torch.save({**values, "names": [*values["names"][1:], "stranger"]}, file)
    with pytest.raises(ForeignCheckpointError, match=r"holds the optimiser of.*stranger"):
        run(config, tmp_path / "run")
    torch.save({**values, "generators": values["generators"] * 2}, file)
    with pytest.raises(ForeignCheckpointError, match=r"written by 2 process\(es\), this run has 1"):
        run(config, tmp_path / "run")
    torch.save(values, file)
    assert run(config, tmp_path / "run").complete
