"""The flux_dev config on random weights in the real layout: five stages, three kinds of source, two ranks."""

import json

import pytest
from safetensors.torch import load_file

from recipes.cologen.tools.example_inputs import write_example_inputs
from recipes.cologen.tools.random_flux1 import write_random_flux
from tests.recipes.cologen.training.distributed.launching import ZERO2, launch

STAGES = ("inpainting", "grounding", "control", "customization", "editing")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A base and pictures, and what the command is told of where they lie."""
    folder = tmp_path_factory.mktemp("inputs")
    write_random_flux(folder / "base", 0)
    paths = write_example_inputs(folder / "data")
    sets = {"table": "parquet", "shards": "tar", "folder": "folder"}
    return [
        f"base.path={folder / 'base'}",
        *(f"data.sets.{name}.path={paths[kind]}" for name, kind in sets.items()),
        f"data.held_out_sets.held_out.path={paths['held_out']}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2", ZERO2])
def test_all_five_stages_run_on_two_ranks(how, inputs, tmp_path):
    run = tmp_path / "run"
    settings = [*inputs, "stages.*.steps=2", "validation.samples=1", "report.samples=1"]
    ended = launch(how, "--config", "flux_dev_tiny_weights", "--output", run, "--set", *settings)
    assert ended.returncode == 0, ended.stderr
    assert "all is done; the report is" in ended.stdout.replace("\n", " ")
    ledger = json.loads((run / "ledger.json").read_text())
    assert {name: stage["status"] for name, stage in ledger["stages"].items()} == dict.fromkeys(
        STAGES, "finished"
    )
    card = json.loads((run / "data_card.json").read_text())
    assert set(card["stages"]["editing"]["shares"]) == {"table", "shards", "folder"}
    before = {}
    for stage in STAGES:  # frozen experts stay as they were, and each stage trains the newest
        weights = load_file(run / "checkpoints" / stage / "prw/adapter_model.safetensors")
        assert all(value.isfinite().all() and value.dtype.itemsize == 4 for value in weights.values())
        assert all((weights[name] == value).all() for name, value in before.items())
        newest = STAGES.index(stage)
        assert any(value.any() for name, value in weights.items() if f"prw_B{newest}." in name)
        before = weights
    shares = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in shares if row["kind"] == "validation"} == set(STAGES)
