"""What a layout is: how the rows of one published data set, or of a user's own, become records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PilImage

from recipes.cologen.config.data import SetSettings
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.record import Origin
from recipes.cologen.data.sources.rows import Row, Rows, open_picture
from recipes.cologen.errors import BrokenPictureError


@dataclass(frozen=True)
class Reading:
    """One row that is being read, with all that a layout needs to make a record of it."""

    id: str
    row: Row
    variant: int
    """Which of the layout's variants is wanted, such as the direction of a pair."""
    tasks: tuple[str, ...]
    """What the record is for."""
    options: Mapping[str, float]
    dataset: str
    revision: str | None
    licence: str
    root: Path | None
    """The folder that names of picture files start from."""
    addition: Mapping[str, Any] = field(default_factory=dict)
    """What the set's `additions` say of this row."""
    sizes_only: bool = False
    """Whether only sizes are wanted: pictures are then black, and no pixel is decoded."""

    def picture(self, value: Any) -> PilImage.Image:
        """The picture that a value of the row stands for.

        Raises:
            BrokenPictureError: It is missing or broken.
        """
        return open_picture(value, self.row, self.root, self.id, sizes_only=self.sizes_only)

    def origin(self, picture: PilImage.Image, scores: Mapping[str, Any] | None = None) -> Origin:
        """Where the record's picture comes from; scores that are no numbers are left out."""
        numbers = {
            name: float(value) for name, value in (scores or {}).items() if isinstance(value, (int, float))
        }
        return Origin(self.dataset, self.revision, self.licence, *picture.size, numbers)

    def broken(self, problem: str) -> BrokenPictureError:
        """The error for a row that cannot be made a record of."""
        return BrokenPictureError(f"{self.id}: {problem}")


def _no_texts(row: Row) -> Sequence[Any]:
    return ()


def _keep(row: Row, options: Mapping[str, float]) -> str | None:
    return None


@dataclass(frozen=True)
class Layout:
    """How the rows of a data set are read; every published set is one row of the table LAYOUTS."""

    name: str
    home: str
    """Where the data set is published."""
    tasks: tuple[str, ...]
    """Stages that it can serve."""
    licence: str
    columns: tuple[str, ...]
    """What its rows must have."""
    record: Callable[[Reading], RawRecord]
    light: tuple[str, ...] = ()
    """Columns without pictures that `texts` and `reject` read; all rows are looked through at the start."""
    texts: Callable[[Row], Sequence[Any]] = _no_texts
    """The captions and prompts of a row, none of which may be empty."""
    reject: Callable[[Row, Mapping[str, float]], str | None] = _keep
    """Why a row is left out, in a word or two; None keeps it."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Settings of its own, such as the least score, with their defaults."""
    variants: int = 1
    """Records that a row is made into."""
    size: str = "not known"
    """Rows and disk space, as published."""
    open_rows: Callable[[SetSettings, str], Rows] | None = None
    """Opens its files where they are not a table, tar shards or a list: given the settings and a name."""
    key: str | None = None
    """The column that `additions` are matched by."""
    needs: str | None = None
    """What `additions` must bring, because the published rows lack it."""
