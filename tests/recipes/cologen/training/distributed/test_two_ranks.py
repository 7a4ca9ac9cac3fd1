"""Two processes train what one does, under DDP, ZeRO-2, FSDP2; launched wrongly they refuse at once."""

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.runs.lock import LOCK_FILE
from recipes.cologen.training.distributed.parallel import sharding_plugin
from recipes.cologen.training.run import LaunchError
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.distributed.launching import FILES, ZERO2, launch, needs_deepspeed
from tests.recipes.cologen.training.killing import quiet

# Routers draw their noise on each rank, and |U - rho| of a batch is no mean over its halves.
ALIKE = ("pool.noise=false", "veteran.per=sample", "optimizer.eps=1e-3", "validation.samples=1")
STAGES = "inpainting..grounding"
ZERO, SAME, EMA = "flow.source_timestep=zero", "flow.source_timestep=same", "optimizer.ema_decay=0.9"
WEIGHTS = "prw/adapter_model.safetensors"


def test_processes_that_do_not_know_of_each_other_are_refused(config, run, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"2 processes were launched.*sees 1.*ACCELERATE_USE_CPU=true"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fsdp_of_the_first_kind_is_refused(config, run, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LaunchError, match=r"FSDP version 1.*fsdp_version: 2"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fsdp_casts_nothing(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = sharding_plugin()
    plugin.set_mixed_precision("bf16")  # as accelerate does for a base in bfloat16
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_the_files_we_ship_are_whole_and_leave_precision_to_the_recipe(how):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(FILES / f"{how}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert loaded.distributed_type == kinds[how]
    assert yaml.safe_load((FILES / f"{how}.yaml").read_text())["mixed_precision"] == "no"


@pytest.mark.slow
def test_two_ranks_are_both_refused_a_folder_that_is_taken(base_path, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(make_config(base_path).to_yaml())
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / LOCK_FILE):
        ended = launch("ddp", "--config", file, "--output", tmp_path / "run")
    assert ended.returncode != 0
    assert ended.stderr.count("error: another command is working") == 2
    assert "barrier" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("ddp", [ZERO, "machine.micro_batch=1", EMA]),
        ("ddp", [SAME, "machine.gradient_checkpointing=true"]),
        pytest.param("deepspeed_zero2", [ZERO, "machine.micro_batch=1", EMA], marks=needs_deepspeed),
        pytest.param("deepspeed_zero2", [SAME, "machine.gradient_checkpointing=true"], marks=needs_deepspeed),
        ("fsdp2", [ZERO, "machine.micro_batch=1", EMA]),
        ("fsdp2", [ZERO, "machine.gradient_checkpointing=true"]),
        ("fsdp2", [SAME, "machine.gradient_checkpointing=true"]),
    ],
)
def test_two_ranks_equal_one_with_the_same_global_batch(how, settings, base_path, tmp_path):
    config = make_config(base_path, *ALIKE, *settings)
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    ended = launch(how, "--config", file, "--stage", STAGES, "--output", tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    quiet(config, tmp_path / "one", STAGES)
    for stage in ("inpainting", "grounding"):
        two, one = (load_file(tmp_path / ranks / "checkpoints" / stage / WEIGHTS) for ranks in ("two", "one"))
        assert_close(two, one, rtol=1e-4, atol=1e-6)
        assert two.keys() == one.keys()
    # What two ranks wrote is whole: one goes on from it, with the stage that is left.
    assert quiet(config, tmp_path / "two", "control").trained == ("control",)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2", ZERO2])
@pytest.mark.parametrize("micro", [2, 1])
def test_a_spoilt_batch_on_one_rank_is_skipped_on_both(how, micro, base_path, tmp_path):
    few = ["validation.samples=0", "logging.checkpoint_every=3", "stages.*.steps=4"]
    config = make_config(base_path, *few, f"machine.micro_batch={micro}")
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    ended = launch(
        how,
        file,
        tmp_path / "run",
        module="tests.recipes.cologen.training.spoiling",
        env={"SPOILT_RANK": "1", "SPOILT_LOSS": {2: "2", 1: "3"}[micro]},
    )
    assert ended.returncode == 0, ended.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    (row,) = [line for line in map(yaml.safe_load, lines) if line["kind"] == "skipped"]
    assert (row["step"], row["losses"][1], len(row["records"])) == (2, "nan", micro)
    assert isinstance(row["losses"][0], float)
    optimizer = torch.load(tmp_path / "run/checkpoints/latest/training.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {2}  # of three steps
    weights = load_file(tmp_path / "run/checkpoints/inpainting" / WEIGHTS)
    assert all(value.isfinite().all() for value in weights.values())
