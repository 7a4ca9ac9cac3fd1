"""DeepSpeed's ZeRO-2 trains what DDP does and shares its checkpoints; other ways of DeepSpeed are refused."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.errors import LaunchError
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.distributed.launching import launch, needs_deepspeed
from tests.recipes.cologen.training.test_run import assert_same_run

WEIGHTS = "checkpoints/inpainting/prw/adapter_model.safetensors"
KILLING = "tests.recipes.cologen.training.killing"


@pytest.fixture
def deepspeed_launch(monkeypatch):
    """What `accelerate launch` puts into the environment for deepspeed_zero2.yaml."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZERO_STAGE", "3"),
        ("ZERO_STAGE", "1"),
        ("OFFLOAD_OPTIMIZER_DEVICE", "cpu"),
        ("OFFLOAD_PARAM_DEVICE", "nvme"),
        ("CONFIG_FILE", "mine.json"),
    ],
)
def test_deepspeed_in_another_way_is_refused(
    name, value, deepspeed_launch, config, run, monkeypatch, tmp_path
):
    monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(LaunchError, match=rf"{value}.*deepspeed_zero2\.yaml, or fsdp2\.yaml"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_under_deepspeed_is_a_plain_run(config, run, deepspeed_launch, monkeypatch, tmp_path):
    run(config, tmp_path / "deepspeed", "inpainting")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    run(config, tmp_path / "plain", "inpainting")
    assert_same_run(tmp_path / "deepspeed", tmp_path / "plain")


def test_a_missing_deepspeed_is_named_before_anything_is_written(
    config, run, deepspeed_launch, monkeypatch, tmp_path
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(LaunchError, match=r"pip install 'prw\[deepspeed\]'.*ddp\.yaml"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimiser_that_cannot_be_divided_is_refused(deepspeed_launch, config, run, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "deepspeed", object())
    eight_bit = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"name": "adamw_8bit"})}
    )
    with pytest.raises(LaunchError, match=r"optimizer\.name is adamw_8bit.*adamw or adamw_fused"):
        run(eight_bit, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_deepspeed
@pytest.mark.slow
def test_ddp_and_zero2_train_alike_and_go_on_from_each_other(base_path, tmp_path):
    config = make_config(
        base_path, "machine.micro_batch=1", "optimizer.ema_decay=0.9", "validation.samples=1"
    )
    config = config.model_copy(update={"stages": {"inpainting": config.stages["inpainting"]}})
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    for how in ("ddp", "deepspeed_zero2"):
        ended = launch(how, "--config", file, "--output", tmp_path / how)
        assert ended.returncode == 0, ended.stderr
    trained = {how: load_file(tmp_path / how / WEIGHTS) for how in ("ddp", "deepspeed_zero2")}
    assert_close(trained["deepspeed_zero2"], trained["ddp"], rtol=0, atol=1e-5)
    for first, second in (("ddp", "deepspeed_zero2"), ("deepspeed_zero2", "ddp")):
        folder = tmp_path / f"{first}_first"
        killed = launch(
            first, file, folder, "in a step", 9, module=KILLING
        )  # in step 5, of two micro-batches each
        assert killed.returncode != 0
        before = torch.load(folder / "checkpoints/latest/training.pt", weights_only=True)["optimizer"]
        assert {int(values["step"]) for values in before["state"].values()} == {4}
        assert any(values["exp_avg"].any() for values in before["state"].values())
        ended = launch(second, "--config", file, "--output", folder)
        assert ended.returncode == 0, ended.stderr
        assert_close(load_file(folder / WEIGHTS), trained["ddp"], rtol=0, atol=1e-5)
