"""A folder is replaced whole or not at all, and a foreign or broken checkpoint is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from prw.storage.atomic import recover_folder, write_text
from recipes.cologen.runs.checkpoint import (
    ForeignCheckpointError,
    StageState,
    load_tensors,
    read_state,
    save_tensors,
    write_folder,
    write_state,
)


def put(text):
    return lambda folder: (folder / "file").write_text(text)


class Killed(BaseException):
    """The process ended here."""


def test_a_folder_is_written_and_replaced(tmp_path):
    folder = tmp_path / "deep" / "latest"
    write_folder(folder, put("one"))
    write_folder(folder, put("two"))
    assert (folder / "file").read_text() == "two"
    assert [path.name for path in folder.parent.iterdir()] == ["latest"]


def test_a_kill_while_writing_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "latest"
    write_folder(folder, put("one"))

    def half(new):
        put("half")(new)
        raise Killed

    with pytest.raises(Killed):
        write_folder(folder, half)
    assert (folder / "file").read_text() == "one"
    write_folder(folder, put("two"))
    assert (folder / "file").read_text() == "two"


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_at_either_rename_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, rename):
    folder, original, count = tmp_path / "latest", Path.rename, 0
    write_folder(folder, put("one"))

    def killed(self, target):
        nonlocal count
        count += 1
        if count == rename:
            raise Killed
        return original(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        write_folder(folder, put("two"))
    monkeypatch.undo()
    recover_folder(folder)
    assert (folder / "file").read_text() == "one"
    write_folder(folder, put("three"))
    assert (folder / "file").read_text() == "three"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest"]


def test_recovering_a_whole_folder_changes_nothing(tmp_path):
    write_folder(tmp_path / "latest", put("one"))
    recover_folder(tmp_path / "latest")
    recover_folder(tmp_path / "never")
    assert (tmp_path / "latest/file").read_text() == "one"
    assert not (tmp_path / "never").exists()


def test_a_kill_while_writing_text_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "ledger.json"
    write_text(file, "old")

    def killed(self, target):
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        write_text(file, "new")
    assert file.read_text() == "old"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_leaves_the_old_folder_and_nothing_half_written(tmp_path, error):
    folder = tmp_path / "latest"
    write_folder(folder, put("one"))

    def full(new):
        put("half")(new)
        raise error

    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, full)
    assert (folder / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_tensors_that_find_no_room_are_an_error_of_the_disk(tmp_path):
    (tmp_path / "training.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"training\.pt"):
        save_tensors(tmp_path, "training", {"a": torch.zeros(100_000)})


STATE = StageState(stage="control", step=3, position=12, seconds=1.5, window=((0.1, 0.2, 0.3, 0.4),))


def test_the_state_comes_back_as_it_was(tmp_path):
    write_state(tmp_path, STATE, "abc")
    assert read_state(tmp_path, "abc") == STATE


def test_the_state_of_another_run_is_refused(tmp_path):
    write_state(tmp_path, STATE, "abc")
    with pytest.raises(ForeignCheckpointError, match=r"fingerprint is abc, this run's is xyz.*Remove"):
        read_state(tmp_path, "xyz")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"step": 3}', '{"format": "other"}'])
def test_what_is_no_state_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    with pytest.raises(ForeignCheckpointError, match="Remove"):
        read_state(tmp_path, "abc")


def test_a_state_that_lacks_its_stage_is_refused(tmp_path):
    (tmp_path / "state.json").write_text('{"format": "cologen-stage-1", "fingerprint": "abc", "step": 3}')
    with pytest.raises(ForeignCheckpointError, match=r"does not say where a stage is(.|\n)*Remove"):
        read_state(tmp_path, "abc")


def test_tensors_come_back_and_broken_ones_are_refused(tmp_path):
    save_tensors(tmp_path, "training", {"a": torch.arange(3), "b": [1, None, "c"]})
    values = load_tensors(tmp_path, "training")
    assert torch.equal(values["a"], torch.arange(3))
    assert values["b"] == [1, None, "c"]
    (tmp_path / "training.pt").write_bytes((tmp_path / "training.pt").read_bytes()[:100])
    for name in ("training", "absent"):
        with pytest.raises(ForeignCheckpointError, match=r"cannot be read.*Remove"):
            load_tensors(tmp_path, name)
