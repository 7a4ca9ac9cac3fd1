"""Rows of parquet and arrow tables, local or from the Hugging Face hub, through the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.cologen.data.sources.rows import Row, is_remote, matching_files
from recipes.cologen.errors import DataSetError

_SCAN_ROWS = 1000


class TableRows:
    """Rows of a map-style `datasets.Dataset`; pictures stay undecoded."""

    def __init__(self, dataset: Any) -> None:
        """Take a `datasets.Dataset`."""
        # As arrow: the library would otherwise decode every picture of a row, wanted or not.
        self._dataset = dataset.with_format("arrow")
        self.columns: tuple[str, ...] = tuple(dataset.column_names)
        self.fingerprint: str = dataset._fingerprint
        """The library's own hash of what the rows are and where they come from."""

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._dataset)

    def row(self, index: int) -> Row:
        """The row at an index."""
        row: Row = self._dataset[index : index + 1].to_pylist()[0]
        return row

    def name(self, index: int) -> str:
        """The row's number."""
        return str(index)

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows in order, these columns of each."""
        if not columns:
            yield from ({} for _ in range(len(self)))
            return
        for part in self._dataset.select_columns(list(columns)).iter(_SCAN_ROWS):
            yield from part.to_pylist()


def open_parquet(path: str, origin: str) -> TableRows:
    """Parquet files; `datasets` turns them into arrow files in its cache, once.

    Those at an address (https://, hf://) are downloaded into the same cache first, by the same library;
    it reads https:// with `aiohttp`.

    Raises:
        DataSetError: No file matches or can be had, or one is no parquet.
    """
    files: list[str] = []
    for part in path.split(","):
        files += [part] if is_remote(part) else map(str, matching_files(part, origin))
    return _opened(origin, "load_dataset", "parquet", data_files={"train": files}, split="train")


def open_arrow(path: str, origin: str, split: str) -> TableRows:
    """A folder that `Dataset.save_to_disk` wrote; of one with several splits, the named one.

    Raises:
        DataSetError: The folder is no such folder, or lacks the split.
    """
    opened = _library_call(origin, "load_from_disk", str(Path(path).expanduser()))
    if not isinstance(opened, dict):
        return TableRows(opened)
    if split not in opened:
        raise DataSetError(f"{origin}: {path} has no split {split!r}; it has {', '.join(opened)}")
    return TableRows(opened[split])


def open_hub(name: str, origin: str, split: str, subset: str | None, revision: str | None) -> TableRows:
    """A data set of the hub, downloaded into the cache of `datasets` if it is not there yet.

    Raises:
        DataSetError: It cannot be had, or lacks the subset or split.
    """
    return _opened(origin, "load_dataset", name, name=subset, split=split, revision=revision)


def _opened(origin: str, function: str, *arguments: Any, **options: Any) -> TableRows:
    return TableRows(_library_call(origin, function, *arguments, **options))


def _library_call(origin: str, function: str, *arguments: Any, **options: Any) -> Any:
    """Call the library, and say what it refused in one sentence."""
    try:
        import datasets
    except ImportError as error:
        raise DataSetError(
            f"{origin}: parquet and arrow are read with `datasets`: pip install 'prw[cologen]'"
        ) from error
    try:
        return getattr(datasets, function)(*arguments, **options)
    # The library raises its own, pyarrow's and the hub's errors, which have no base in common.
    except Exception as error:
        raise DataSetError(
            f"{origin}: `datasets` cannot open {arguments[0]!r} ({type(error).__name__}: {error})"
        ) from error
