"""A run that is killed (SIGKILL) at any moment, or loses its disk, goes on and ends as if nothing was."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from prw.storage.atomic import recover_folder
from recipes.cologen import train as command
from recipes.cologen.training import metrics
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.killing import MOMENTS, arrange, in_child, quiet
from tests.recipes.cologen.training.test_run import assert_same_run

SHORT = ("stages.*.steps=4", "validation.every=2", "validation.samples=1")
STAGES = "inpainting..grounding"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def short(base_path):
    return make_config(base_path, *SHORT)


@pytest.fixture(scope="module")
def unbroken(short, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    quiet(short, folder, STAGES)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_one_that_was_not(moment, short, unbroken, tmp_path):
    """The quick part of the matrix that scripts/resume_matrix runs whole."""
    folder = tmp_path / "run"
    count = 1 if "renames" in moment else 2  # in the second stage; there is one checkpoint to rename away

    def work():
        arrange(moment, count)
        quiet(short, folder, STAGES)

    assert in_child(work) == -signal.SIGKILL
    quiet(short, folder, STAGES)
    assert_same_run(folder, unbroken)
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_run_that_is_killed_again_and_again_gets_there(short, unbroken, tmp_path):
    folder, deaths = tmp_path / "run", 0
    while True:
        ended = in_child(lambda: (arrange("in a step", 3), quiet(short, folder, STAGES)))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        deaths += 1
    assert deaths >= 1
    assert_same_run(folder, unbroken)


def test_a_disk_that_is_full_for_checkpoints_keeps_the_last_one(short, unbroken, tmp_path):
    """A real limit on the size of files: what is written up to it stays, as on a full disk."""
    folder = tmp_path / "run"
    config = tmp_path / "short.yaml"
    config.write_text(short.to_yaml())

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        os._exit(command.main(["--config", str(config), "--stage", STAGES, "--output", str(folder)]))

    assert in_child(work) == 1
    recover_folder(folder / "checkpoints" / "latest")
    assert not (folder / "checkpoints" / "latest").exists()
    quiet(short, folder, STAGES)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_metrics_file_that_cannot_be_written_loses_nothing(
    number, short, unbroken, tmp_path, monkeypatch, capsys
):
    config, folder = tmp_path / "short.yaml", tmp_path / "run"
    config.write_text(short.to_yaml())
    original, seen = metrics.MetricsLog.write, []

    def failing(self, row):
        seen.append(row)
        if len(seen) == 4:
            with self.path.open("a") as file:
                file.write('{"torn": ')
            raise OSError(number, os.strerror(number), str(self.path))
        original(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "write", failing)
        assert command.main(["--config", str(config), "--stage", STAGES, "--output", str(folder)]) == 1
    said = capsys.readouterr().err
    assert os.strerror(number) in said and "its last checkpoint too" in said and "Traceback" not in said
    quiet(short, folder, STAGES)
    assert_same_run(folder, unbroken)


def test_a_folder_that_may_only_be_read_is_refused_in_a_line(short, tmp_path, monkeypatch, capsys):
    config = tmp_path / "short.yaml"
    config.write_text(short.to_yaml())

    def read_only(self, *arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert command.main(["--config", str(config), "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said and "Give a folder that you may write to as --output" in said
    assert not (tmp_path / "run").exists()
