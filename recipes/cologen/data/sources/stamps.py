"""A folder of stamps: cut-outs with alpha, each with a description, in the layout of Tux Paint's.

`animals/bear.png` has its description in the first line of `animals/bear.txt`; further lines are
translations. `bear.dat` may say `nomirror`. Folders at the top are kinds of things.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.cologen.data.class_colours import CLASSES
from recipes.cologen.data.decoding import stored_size
from recipes.cologen.data.sources.rows import Row, is_system_file
from recipes.cologen.errors import BrokenPictureError, DataSetError

SIGNS = "symbols"
"""Tux Paint's folder of letters, coins and signs."""
_MOST_WORDS = 6
_ARTICLE = re.compile(r"(an?|the|some)\s+(.+)", re.IGNORECASE)


class Stamp(NamedTuple):
    """One stamp, its picture not yet read."""

    file: str
    """Below the folder."""
    label: str
    """What it is called, without an article: `bear`."""
    phrase: str
    """With an article: `a bear`."""
    kind: str
    """Its folder at the top."""
    number: int
    """The class of that folder; 0 is kept for the background."""
    may_mirror: bool


class StampScenes:
    """As many scenes as are asked for; a row is a scene's number and the stamps it may be made of.

    Args:
        path: The folder.
        scenes: How many.
        min_side: Least pixels of a stamp's longer side.
        signs: Whether letters, coins and signs are taken too.
        held_out: 0 for nine of ten stamps, 1 for the tenth, -1 for all.
        origin: What messages call the data set.

    Raises:
        DataSetError: There is no such folder, or it holds fewer than two stamps that are called differently.
    """

    columns: tuple[str, ...] = ()

    def __init__(
        self, path: str, *, scenes: int, min_side: int, signs: bool, held_out: int, origin: str
    ) -> None:
        """Look through the folder; see the class."""
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DataSetError(
                f"{origin}: there is no folder {root}; Debian's is /usr/share/tuxpaint/stamps, after: "
                "apt-get install tuxpaint-stamps-default"
            )
        found = [stamp for stamp in _stamps(root, min_side, origin) if signs or stamp.kind != SIGNS]
        self.stamps = tuple(stamp for stamp in found if held_out < 0 or _is_tenth(stamp) == bool(held_out))
        if len({stamp.label for stamp in self.stamps}) < 2:
            raise DataSetError(
                f"{origin}: {root} holds {len(self.stamps)} stamps that can be used; at least two that are "
                "called differently are needed. A stamp is NAME.png with alpha and its description in "
                f"NAME.txt, {min_side} pixels long at least (option `min_side`)"
            )
        self._scenes = scenes

    def __len__(self) -> int:
        """How many scenes there are."""
        return self._scenes

    def row(self, index: int) -> Row:
        """The scene at an index."""
        return {"scene": index, "stamps": self.stamps}

    def name(self, index: int) -> str:
        """The scene's number."""
        return f"scene/{index}"

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All scenes in order, without their stamps."""
        yield from ({} for _ in range(self._scenes))


def _stamps(root: Path, min_side: int, origin: str) -> Iterator[Stamp]:
    """All stamps with a description, sorted by file."""
    files = sorted(
        file
        for file in root.rglob("*.png")
        if file.with_suffix(".txt").is_file() and not is_system_file(file.relative_to(root).as_posix())
    )
    kinds = sorted({file.relative_to(root).parts[0] for file in files})
    if len(kinds) >= CLASSES:
        raise DataSetError(
            f"{origin}: {root} has {len(kinds)} folders at its top, but at most {CLASSES - 1} classes can be "
            "told apart; sort the stamps into fewer"
        )
    for file in files:
        name = file.relative_to(root)
        lines = file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or not lines[0].strip() or _longer_side(file, origin) < min_side:
            continue
        label, phrase = described(lines[0], file.stem)
        notes = file.with_suffix(".dat")
        mirrors = not notes.is_file() or "nomirror" not in notes.read_text(encoding="utf-8", errors="replace")
        number = kinds.index(name.parts[0]) + 1
        yield Stamp(name.as_posix(), label, phrase, name.parts[0], number, mirrors)


def described(text: str, stem: str) -> tuple[str, str]:
    """What a stamp is called, without and with its article: its description's beginning, else its file.

    `A bear.` is `bear` and `a bear`; a description that is no name (`Excited!`) leaves the file's.
    """
    beginning = re.split(r"[,.;:!?()—–“”\"]", text.strip())[0].strip()
    found = _ARTICLE.fullmatch(beginning)
    if found is not None and len(found[2].split()) <= _MOST_WORDS:
        return found[2], f"{found[1].lower()} {found[2]}"
    words = " ".join(re.findall(r"[A-Za-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem))).lower() or stem
    return words, f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _longer_side(file: Path, origin: str) -> int:
    try:
        return max(stored_size(file))
    except BrokenPictureError as error:
        raise DataSetError(f"{origin}: {file} is no picture ({error}); mend or remove it") from error


def _is_tenth(stamp: Stamp) -> bool:
    return zlib.crc32(stamp.file.encode()) % 10 == 0
