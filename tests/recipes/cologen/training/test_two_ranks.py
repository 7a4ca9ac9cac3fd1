"""Two processes train what one does, and launched wrongly they refuse before they write."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.training.run import LaunchError, train
from tests.recipes.cologen.training.conftest import make_config

# Routers draw their noise on each rank, and |U - rho| of a batch is no mean over its halves.
ALIKE = ("pool.noise=false", "veteran.per=sample", "optimizer.eps=1e-3", "validation.samples=0")


def test_processes_that_do_not_know_of_each_other_are_refused(config, run, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"2 processes were launched.*sees 1.*accelerate launch --cpu"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_equal_one_with_the_same_global_batch(base_path, tmp_path):
    config = make_config(base_path, *ALIKE)
    file = tmp_path / "two.yaml"
    file.write_text(config.to_yaml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "recipes.cologen.train", "--config", str(file), "--stage", "inpainting..grounding"]
    subprocess.run(
        [*launcher, *command, "--output", str(tmp_path / "two")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    train(config, tmp_path / "one", "inpainting..grounding", Console(file=io.StringIO()))
    for stage in ("inpainting", "grounding"):
        weights = f"checkpoints/{stage}/prw/adapter_model.safetensors"
        assert_close(
            load_file(tmp_path / "two" / weights),
            load_file(tmp_path / "one" / weights),
            rtol=1e-4,
            atol=1e-6,
        )
