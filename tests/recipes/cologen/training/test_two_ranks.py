"""Two processes train what one does, and launched wrongly they refuse before they write."""

import fcntl
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.training.run import LaunchError, train
from recipes.cologen.training.run_lock import LOCK_FILE
from tests.recipes.cologen.training.conftest import make_config

# Routers draw their noise on each rank, and |U - rho| of a batch is no mean over its halves.
ALIKE = ("pool.noise=false", "veteran.per=sample", "optimizer.eps=1e-3", "validation.samples=0")


def test_processes_that_do_not_know_of_each_other_are_refused(config, run, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"2 processes were launched.*sees 1.*accelerate launch --cpu"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def launch(*arguments):
    """The command on two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "recipes.cologen.train", *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_ranks_are_both_refused_a_folder_that_is_taken(base_path, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(make_config(base_path).to_yaml())
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / LOCK_FILE).open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        ended = launch("--config", file, "--output", tmp_path / "run")
    assert ended.returncode != 0
    assert ended.stderr.count("error: another command is working") == 2
    assert "barrier" not in ended.stderr


@pytest.mark.slow
def test_two_ranks_equal_one_with_the_same_global_batch(base_path, tmp_path):
    config = make_config(base_path, *ALIKE)
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    launch(
        "--config", file, "--stage", "inpainting..grounding", "--output", tmp_path / "two"
    ).check_returncode()
    train(config, tmp_path / "one", "inpainting..grounding", Console(file=io.StringIO()))
    for stage in ("inpainting", "grounding"):
        weights = f"checkpoints/{stage}/prw/adapter_model.safetensors"
        assert_close(
            load_file(tmp_path / "two" / weights),
            load_file(tmp_path / "one" / weights),
            rtol=1e-4,
            atol=1e-6,
        )
