"""A single file is replaced all or nothing: an error or a kill leaves the old one."""

import pytest

from prw.storage.atomic import FILE_DRAFT, atomic_file


def test_a_file_is_written_and_replaced(tmp_path):
    for text in ("one", "two"):
        with atomic_file(tmp_path / "a.json") as draft:
            assert draft.parent == tmp_path and draft.suffix == ".json" and draft.name.startswith(FILE_DRAFT)
            draft.write_text(text)
        assert (tmp_path / "a.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.json").write_text("old")

    def write():
        with atomic_file(tmp_path / "a.json") as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
