"""What FSDP2, DDP and ZeRO-2 work together with: one process, quantised bases, compiled blocks."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.errors import LaunchError
from recipes.cologen.training.growth import load_base_to_train
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.distributed.launching import ZERO2, launch
from tests.recipes.cologen.training.killing import quiet

WEIGHTS = "checkpoints/inpainting/prw/adapter_model.safetensors"
TWO_STEPS = ("validation.samples=0", "stages.inpainting.steps=2")
ALIKE = ("pool.noise=false", "veteran.per=sample", "optimizer.eps=1e-3")


@pytest.mark.parametrize(("processes", "device"), [(None, "meta"), ("1", "meta"), ("2", "cpu")])
def test_a_base_waits_for_its_split_only_where_several_processes_share_it(
    processes, device, config, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    assert load_base_to_train(config, torch.device("meta")).device.type == device


@pytest.mark.slow
def test_one_process_under_fsdp2_trains_what_a_plain_run_does(base_path, tmp_path):
    config = make_config(base_path, *TWO_STEPS)
    file = tmp_path / "one.yaml"
    file.write_text(config.to_yaml())
    wanted = ("--stage", "inpainting", "--output", tmp_path / "split")
    ended = launch("fsdp2", "--config", file, *wanted, processes=1)
    assert ended.returncode == 0, ended.stderr
    quiet(config, tmp_path / "plain", "inpainting")
    split, plain = (load_file(tmp_path / run / WEIGHTS) for run in ("split", "plain"))
    assert split.keys() == plain.keys()
    assert all(torch.equal(split[name], value) for name, value in plain.items())


@pytest.mark.parametrize("kind", ["torchao_int8", "torchao_fp8", "nf4", "int8"])
def test_a_quantised_base_is_refused_before_it_is_loaded(kind, base_path, run, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = make_config(base_path, f"base.quantisation={kind}")
    with pytest.raises(LaunchError, match=rf"base\.quantisation={kind}.*ddp\.yaml.*base\.quantisation=null"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source_timestep", ["zero", "same"])
def test_compiled_blocks_that_are_split_train_what_one_process_does(source_timestep, base_path, tmp_path):
    settings = (*ALIKE, *TWO_STEPS, f"flow.source_timestep={source_timestep}")
    compiled = ("machine.compile=true", "machine.compile_backend=aot_eager")
    config, file = make_config(base_path, *settings), tmp_path / "two.yaml"
    file.write_text(make_config(base_path, *settings, *compiled).to_yaml())
    wanted = ("--stage", "inpainting", "--output", tmp_path / "split")
    ended = launch("fsdp2", "--config", file, *wanted)
    assert ended.returncode == 0, ended.stderr
    quiet(config, tmp_path / "plain", "inpainting")
    split, plain = (load_file(tmp_path / run / WEIGHTS) for run in ("split", "plain"))
    assert_close(split, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("how", ["ddp", ZERO2])
def test_a_quantised_base_is_trained_on_two_ranks_as_on_one(how, base_path, tmp_path):
    config = make_config(base_path, *ALIKE, *TWO_STEPS, "base.quantisation=torchao_int8")
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    ended = launch(how, "--config", file, "--stage", "inpainting", "--output", tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    quiet(config, tmp_path / "one", "inpainting")
    two, one = (load_file(tmp_path / run / WEIGHTS) for run in ("two", "one"))
    assert_close(two, one, rtol=1e-4, atol=1e-6)
