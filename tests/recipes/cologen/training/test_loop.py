"""A stage refuses a checkpoint that does not fit."""

import pytest
import torch

from recipes.cologen.runs.checkpoint import ForeignCheckpointError


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
