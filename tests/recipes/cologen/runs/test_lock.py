"""A folder has one writer at a time, whatever becomes of it, and a refusal leaves nothing behind."""

import fcntl
import os
import subprocess
import sys

import pytest

from recipes.cologen.errors import RunFolderError
from recipes.cologen.runs.lock import LOCK_FILE, hold_run

HOLD = (
    "import sys, pathlib; from recipes.cologen.runs.lock import hold_run\n"
    "with hold_run(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(holder, tmp_path):
    for _ in range(2):
        with (
            pytest.raises(RunFolderError, match=rf"working in .*run \(process {holder.pid} on "),
            hold_run(tmp_path / "run"),
        ):
            raise AssertionError("two hold one folder")
    assert (tmp_path / "run" / LOCK_FILE).exists()


def test_a_crash_frees_the_folder(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with hold_run(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK_FILE).exists()


FORK = (
    "import os, pathlib, sys, time; from recipes.cologen.runs.lock import hold_run\n"
    "with hold_run(pathlib.Path(sys.argv[1])):\n"
    "    child = os.fork()\n"
    "    if child:\n        print(child, flush=True)\n"
    "    time.sleep(60)"
)


def test_a_forked_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with hold_run(tmp_path):
                pass
        finally:
            os.kill(child, 9)


HIDDEN = """
import importlib, pkgutil, signal, sys
sys.modules["fcntl"] = None  # as where there is none
del signal.SIGUSR1
import recipes.cologen
for module in pkgutil.walk_packages(recipes.cologen.__path__, "recipes.cologen."):
    if not module.name.endswith("__main__") and ".assets" not in module.name:
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_can_be_imported_where_fcntl_and_sigusr1_do_not_exist():
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recipes.cologen.runs.lock" in done.stdout and "recipes.cologen.train" in done.stdout


def test_folders_made_for_the_lock_alone_are_removed_and_others_kept(tmp_path):
    with hold_run(tmp_path / "a" / "b"):
        assert (tmp_path / "a/b" / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with hold_run(tmp_path / "a" / "b"):
        (tmp_path / "a/b/config.yaml").write_text("")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["config.yaml"]
    (tmp_path / "empty").mkdir()
    with hold_run(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("place", ["file", "file/run", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("precious")
    refusal = pytest.raises(RunFolderError, match=r"cannot be the folder of a run: .*Give a folder")
    with refusal, hold_run(tmp_path / place):
        raise AssertionError("held")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    original, opened = fcntl.flock, []

    def removed_in_between(handle, how):
        original(handle, how)
        opened.extend([handle] if how & fcntl.LOCK_EX else [])
        if len(opened) == 1:
            (tmp_path / LOCK_FILE).unlink()

    monkeypatch.setattr(fcntl, "flock", removed_in_between)
    with hold_run(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert len(opened) == 2
