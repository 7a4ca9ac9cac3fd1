"""Two processes share one cache and deal buckets as one process does."""

import io
import json

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.cologen.training.run import train
from tests.recipes.cologen.training import test_on_files
from tests.recipes.cologen.training.distributed.launching import launch
from tests.recipes.cologen.training.distributed.test_two_ranks import ALIKE
from tests.recipes.cologen.training.test_bucketed_runs import make

__all__ = ["make"]


@pytest.mark.slow
def test_two_ranks_with_buckets_and_one_cache_equal_one_without(make, tmp_path):
    stages = json.dumps({"editing": {**test_on_files.ROW, "steps": 4, "batch_size": 4}})
    options = [f"stages={stages}", "data.buckets.group=2", "machine.micro_batch=2", *ALIKE]
    plain = make("folder", *options)
    cached = make("folder", *options, f"data.cache.folder={tmp_path / 'cache'}", "data.cache.shard_mb=1")
    (tmp_path / "two.yaml").write_text(cached.to_yaml())
    weights = "checkpoints/editing/prw/adapter_model.safetensors"
    for name in ("cold", "warm"):
        given = ["--config", tmp_path / "two.yaml", "--stage", "editing", "--output", tmp_path / name]
        ended = launch("ddp", *given)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "cold" / weights).read_bytes() == (tmp_path / "warm" / weights).read_bytes()
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    train(plain, tmp_path / "one", "editing", Console(file=io.StringIO()))
    assert_close(
        load_file(tmp_path / "cold" / weights), load_file(tmp_path / "one" / weights), rtol=1e-4, atol=1e-6
    )
