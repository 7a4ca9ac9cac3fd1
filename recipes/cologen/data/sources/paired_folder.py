"""Rows of a paired folder: source/NAME.jpg, target/NAME.png and the prompt in target/NAME.txt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.cologen.data.sources.rows import Row
from recipes.cologen.data.sources.shards import PICTURES
from recipes.cologen.errors import DataSetError


class PairedFolder:
    """Pairs of pictures with the same name but for the ending.

    Args:
        path: The folder that holds `source` and `target`.
        origin: What messages call the data set.

    Raises:
        DataSetError: A folder is missing, or a picture has no partner; some are named.
    """

    columns: tuple[str, ...] = ("source", "target", "text")

    def __init__(self, path: str, origin: str) -> None:
        """Match the names; see the class."""
        # Rows name whole paths: before a relative one, the folder that a set reads names from comes again.
        self._root = Path(path).expanduser().absolute()
        sources, targets = (_pictures(self._root / side, origin) for side in ("source", "target"))
        alone = sorted(set(sources) ^ set(targets))
        if alone:
            raise DataSetError(
                f"{origin}: pictures without a partner: {len(alone)}, in {self._root} (for example "
                f"{', '.join(alone[:3])}); source and target should hold the same names"
            )
        self._pairs = [(name, sources[name], targets[name]) for name in sorted(sources)]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._pairs)

    def row(self, index: int) -> Row:
        """The pair at an index: two file names, and the prompt."""
        _, source, target = self._pairs[index]
        prompt = target.with_suffix(".txt")
        text = prompt.read_text(encoding="utf-8").strip() if prompt.is_file() else ""
        return {"source": str(source), "target": str(target), "text": text}

    def name(self, index: int) -> str:
        """The pictures' common name."""
        return self._pairs[index][0]

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All pairs in order."""
        for index in range(len(self)):
            yield self.row(index) if columns else {}


def _pictures(folder: Path, origin: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataSetError(
            f"{origin}: there is no folder {folder}; expected source/ and target/ with pictures"
        )
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower().lstrip(".") in PICTURES)
    if not files:
        raise DataSetError(f"{origin}: {folder} holds no pictures ({', '.join(PICTURES)})")
    named = {str(file.relative_to(folder).with_suffix("")): file for file in files}
    if len(named) < len(files):
        raise DataSetError(f"{origin}: {folder} holds two pictures of one name with different endings")
    return named
