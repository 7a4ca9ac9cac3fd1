"""Two ranks that go on write the very rows of two that were never stopped: each has its own steps to log."""

import json

import pytest

from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.distributed.launching import launch

# A checkpoint in the middle of what a row averages; two ranks see other halves of each batch.
SETTINGS = ("logging.every=6", "logging.checkpoint_every=2", "validation.samples=0", "logging.trackers=[]")


def rows(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


@pytest.mark.slow
def test_resumed_rows_equal_those_of_an_uninterrupted_run(base_path, tmp_path):
    config = make_config(base_path, *SETTINGS)
    config = config.model_copy(update={"stages": {"inpainting": config.stages["inpainting"]}})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    whole = launch("ddp", "--config", file, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killing = "tests.recipes.cologen.training.killing"
    killed = launch("ddp", file, tmp_path / "run", "in a step", 5, module=killing, env={"DEADLY_RANK": "1"})
    assert killed.returncode != 0
    ended = launch("ddp", "--config", file, "--output", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") != []
