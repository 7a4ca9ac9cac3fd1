"""Rows of a paired folder: source/NAME.jpg, target/NAME.png and the prompt in target/NAME.txt."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.cologen.data.sources.packed import PackedBytes
from recipes.cologen.data.sources.rows import Row, existing_path, is_system_file
from recipes.cologen.data.sources.shards import PICTURES
from recipes.cologen.data.text import decoded_text
from recipes.cologen.errors import BrokenPictureError, DataSetError


class PairedFolder:
    """Pairs of pictures with the same name but for the ending, and for the Unicode form of its letters.

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
        named = ((name, sources[name], targets[name]) for name in sorted(sources))
        self._pairs = PackedBytes(json.dumps(pair).encode() for pair in named)

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._pairs)

    def row(self, index: int) -> Row:
        """The pair at an index: two file names, and the prompt.

        Raises:
            BrokenPictureError: The prompt's file is in no encoding that can be told.
        """
        _, source, target = json.loads(self._pairs[index])
        prompt = existing_path(self._root / "target", str(Path(target).with_suffix(".txt")))
        try:
            text = decoded_text(prompt.read_bytes()).strip() if prompt.is_file() else ""
        except BrokenPictureError as error:
            raise BrokenPictureError(f"{prompt}: {error}") from error
        sides = {"source": self._root / "source" / source, "target": self._root / "target" / target}
        return {**{side: str(file) for side, file in sides.items()}, "text": text}

    def name(self, index: int) -> str:
        """The pictures' common name."""
        return str(json.loads(self._pairs[index])[0])

    def scan(self, columns: Sequence[str]) -> Iterator[Row | BrokenPictureError]:
        """All pairs in order."""
        for index in range(len(self)):
            try:
                yield self.row(index) if columns else {}
            except BrokenPictureError as error:
                yield error


def _pictures(folder: Path, origin: str) -> dict[str, str]:
    """Pictures below a folder: their names there, by what both sides call them."""
    if not folder.is_dir():
        raise DataSetError(
            f"{origin}: there is no folder {folder}; expected source/ and target/ with pictures"
        )
    found = ((file, file.relative_to(folder)) for file in sorted(folder.rglob("*")))
    files = [
        name
        for file, name in found
        if file.suffix.lower().lstrip(".") in PICTURES and not is_system_file(name.as_posix())
    ]
    if not files:
        raise DataSetError(f"{origin}: {folder} holds no pictures ({', '.join(PICTURES)})")
    named = {unicodedata.normalize("NFC", str(name.with_suffix(""))): str(name) for name in files}
    if len(named) < len(files):
        raise DataSetError(
            f"{origin}: {folder} holds two pictures of one name, with different endings or Unicode forms (as "
            "NFC and NFD)"
        )
    return named
