"""A probe takes the run's own steps without refusing what the run allows, and leaves nothing behind."""

import io
import json

import pytest
from rich.console import Console

from recipes.cologen import doctor
from recipes.cologen.training import trackers
from tests.recipes.cologen.training.conftest import base_path
from tests.recipes.cologen.training.test_on_files import arrow_cache, config, write_folder

__all__ = ["arrow_cache", "base_path"]


@pytest.fixture
def probe(base_path, tmp_path):
    """Ask the doctor about a run on files, with a probe."""

    def run(*overrides):
        (tmp_path / "data").mkdir()
        asked = config(base_path, write_folder(tmp_path / "data"), *overrides)
        (tmp_path / "run.yaml").write_text(asked.to_yaml())
        answer, said = tmp_path / "answer.json", io.StringIO()
        given = ["--config", tmp_path / "run.yaml", "--output", tmp_path / "run", "--json", answer, "--probe"]
        status = doctor.main(list(map(str, given)), Console(file=said, width=200))
        return status, said.getvalue(), json.loads(answer.read_text())

    return run


def test_a_run_with_groups_of_buckets_can_be_probed(probe, tmp_path):
    buckets = ["data.buckets.sizes=[[16,24]]", f"data.buckets.index={tmp_path}/index"]
    # A batch of 4 in micro-batches of 1: a probe's batch is one of those, in which no group of 2 fits.
    asked = [*buckets, "data.buckets.group=2", "machine.micro_batch=1", "stages.*.batch_size=4"]
    status, said, facts = probe(*asked)
    assert status == 0, said
    assert all(stage["seconds_per_micro_batch"] > 0 for stage in facts["stages"].values())


def test_a_probe_writes_nothing_into_the_cache_of_the_run(probe, tmp_path):
    status, said, _ = probe(f"data.cache.folder={tmp_path}/cache")
    assert status == 0, said
    assert not (tmp_path / "cache").exists()


def test_a_probe_tells_no_tracker(probe, monkeypatch):
    begun = []
    monkeypatch.setattr(trackers, "_started", lambda *given: begun.append(given))
    status, said, _ = probe("logging.trackers=[tensorboard]")
    assert status == 0, said
    assert begun == []


def test_a_tracker_that_is_not_there_is_a_problem(probe):
    status, said, _ = probe("logging.trackers=[nonesuch]")
    assert status == 1 and "logging.trackers names 'nonesuch'" in said
