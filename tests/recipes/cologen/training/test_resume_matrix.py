"""The whole matrix of killed and resumed runs, for `scripts/resume_matrix`; test_killed_runs.py is quicker.

Every moment, the first and the second time it comes; 0 and 2 workers; 1 rank, and 2 under DDP, ZeRO-2 and
FSDP2.
"""

import os
import random
import signal
import time

import pytest

from recipes.cologen.config.run import load_config
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.distributed.launching import ZERO2, launch
from tests.recipes.cologen.training.killing import MOMENTS, arrange, in_child, quiet
from tests.recipes.cologen.training.test_run import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STAGES = "inpainting..grounding"
SHORT = ("validation.every=2", "validation.samples=1", "machine.micro_batch=1")
KILLING = "tests.recipes.cologen.training.killing"
DEADLY = [
    ("in a step", 3, 1),
    ("in a step", 6, 0),
    ("while a checkpoint is written", 2, 0),
    ("between the two renames of a checkpoint", 1, 0),
    ("after a finished stage is renamed, before the ledger is written", 1, 0),
    ("in validation", 2, 0),
]
"""Moment, how often it comes before it is deadly, and the rank that dies."""


def settings(base_path, workers=0):
    return make_config(base_path, *SHORT, f"machine.workers={workers}")


@pytest.fixture(scope="module")
def unbroken(base_path, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    quiet(settings(base_path), folder, STAGES)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_one_rank_killed_at_a_moment(moment, count, workers, base_path, unbroken, tmp_path):
    config, folder = settings(base_path, workers), tmp_path / "run"
    ended = in_child(lambda: (arrange(moment, count), quiet(config, folder, STAGES)))
    assert ended == -signal.SIGKILL
    quiet(config, folder, STAGES)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_one_rank_killed_at_random_until_it_is_done(seed, workers, base_path, unbroken, tmp_path):
    config, folder, rng = settings(base_path, workers), tmp_path / "run", random.Random(seed)
    for attempt in range(100):
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            quiet(config, folder, STAGES)
            os._exit(0)
        deadline = time.monotonic() + rng.uniform(0.1, 1.0) * (1 + attempt)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        if ended[0]:
            break
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] and os.waitstatus_to_exitcode(ended[1]) == 0
    assert_same_run(folder, unbroken)


@pytest.fixture(scope="module")
def two_unbroken(base_path, tmp_path_factory):
    """Runs of two ranks that nobody killed, made when they are asked for."""
    made = {}

    def of(how):
        if how not in made:
            folder = tmp_path_factory.mktemp(how)
            file = folder / "config.yaml"
            file.write_text(only_two(base_path).to_yaml())
            ended = launch(how, "--config", file, "--stage", STAGES, "--output", folder / "run")
            assert ended.returncode == 0, ended.stderr
            made[how] = folder / "run"
        return made[how]

    return of


def only_two(base_path, workers=0):
    """The two stages alone, so that the killed command needs no --stage."""
    config = settings(base_path, workers)
    return config.model_copy(update={"stages": dict(list(config.stages.items())[:2])})


@pytest.mark.parametrize("how", ["ddp", "fsdp2", ZERO2])
@pytest.mark.parametrize(("moment", "count", "rank"), DEADLY)
def test_two_ranks_of_which_one_is_killed(how, moment, count, rank, base_path, two_unbroken, tmp_path):
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(only_two(base_path, workers=2 if count % 2 else 0).to_yaml())
    load_config(file)
    killed = launch(how, file, folder, moment, count, module=KILLING, env={"DEADLY_RANK": str(rank)})
    assert killed.returncode != 0
    ended = launch(how, "--config", file, "--stage", STAGES, "--output", folder)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(folder, two_unbroken(how))
