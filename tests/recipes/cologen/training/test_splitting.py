"""What FSDP2 splits, and with what it works together: one process, quantised bases, compiled blocks."""

import pytest
import torch
from safetensors.torch import load_file

from recipes.cologen.training.growth import load_base
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.killing import quiet
from tests.recipes.cologen.training.launching import launch

WEIGHTS = "prw/adapter_model.safetensors"
ONE_STEP = ("validation.samples=0", "stages.inpainting.steps=2")


@pytest.mark.parametrize(("processes", "device"), [(None, "meta"), ("1", "meta"), ("2", "cpu")])
def test_a_base_waits_for_its_split_only_where_several_processes_share_it(
    processes, device, config, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    assert load_base(config, torch.device("meta")).device.type == device


@pytest.mark.slow
def test_one_process_under_fsdp2_trains_what_a_plain_run_does(base_path, tmp_path):
    config = make_config(base_path, *ONE_STEP)
    file = tmp_path / "one.yaml"
    file.write_text(config.to_yaml())
    wanted = ("--stage", "inpainting", "--output", tmp_path / "split")
    ended = launch("fsdp2", "--config", file, *wanted, processes=1)
    assert ended.returncode == 0, ended.stderr
    quiet(config, tmp_path / "plain", "inpainting")
    split, plain = (
        load_file(tmp_path / run / "checkpoints/inpainting" / WEIGHTS) for run in ("split", "plain")
    )
    assert split.keys() == plain.keys()
    assert all(torch.equal(split[name], value) for name, value in plain.items())
