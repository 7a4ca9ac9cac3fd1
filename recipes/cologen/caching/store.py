"""Tensors on disk by key: safetensors shards that several processes write and read at once.

A shard is written under a temporary name, forced to disk and renamed, so a reader sees all of it or nothing,
and a killed writer leaves nothing half-written. Shards are never changed. Every tensor's checksum is in its
shard's header; a shard that does not hold what it should is deleted, and its entries are made again.
A folder that cannot be written is no error: it is said once, and from then on the store only reads.
"""

from __future__ import annotations

import logging
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prw.storage.atomic import FILE_DRAFT, atomic_file

Parts = Mapping[str, Tensor]
"""The tensors of one entry, by name."""
_logger = logging.getLogger(__name__)
_ENDING = ".safetensors"
_OPEN_SHARDS = 64
_OLD_SECONDS = 3600.0
"""Age at which a temporary file is taken for one of a writer that was killed."""


class TensorStore:
    """Entries of one kind, made by one set of encoders, in a folder of their own.

    Args:
        folder: Made if it is missing.
        shard_bytes: Entries are held back until they are so large together, or `flush` is called.
        announce: Called with what is damaged or cannot be written; by default it is logged as a warning.
    """

    def __init__(
        self, folder: Path, shard_bytes: int = 2**27, announce: Callable[[str], None] | None = None
    ) -> None:
        """Read the headers of all shards; see the class."""
        self.folder = folder
        self._shard_bytes, self._announce = shard_bytes, announce or _logger.warning
        self._shard_of: dict[str, str] = {}
        self._known: set[str] = set()
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._pending: dict[str, Parts] = {}
        self._pending_bytes = 0
        self.stopped: str | None = None
        """Why nothing is written any more; None as long as it is."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop(error)
        _remove_leftovers(folder)
        self.refresh()

    def __len__(self) -> int:
        """How many entries there are, those not written yet included."""
        return len(self._shard_of.keys() | self._pending.keys())

    def __contains__(self, key: str) -> bool:
        """Whether an entry is there; it may still turn out to be damaged."""
        return key in self._pending or key in self._shard_of

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*{_ENDING}"))

    def refresh(self) -> None:
        """Take notice of shards that others have written since."""
        for path in sorted(self.folder.glob(f"[!.]*{_ENDING}")):
            if path.name not in self._known:
                self._index(path)

    def get(self, key: str) -> Parts | None:
        """The tensors of an entry; None where there is none, or a damaged one, which is deleted."""
        if key in self._pending:
            return self._pending[key]
        name = self._shard_of.get(key)
        if name is None:
            return None
        try:
            return self._read(name, key)
        except FileNotFoundError:
            self._forget(name)
        except (SafetensorError, OSError, ValueError) as error:
            self._discard(self.folder / name, str(error))
        return None

    def put(self, key: str, parts: Parts) -> None:
        """Keep an entry; it is on disk once a shard is full, or after `flush`. Nothing, once stopped."""
        if self.stopped is not None:
            return
        self._pending[key] = {name: value.detach().cpu().clone() for name, value in parts.items()}
        self._pending_bytes += sum(value.nbytes for value in self._pending[key].values())
        if self._pending_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was held back, and look for what others have written."""
        if self._pending:
            name = f"{uuid.uuid4().hex}{_ENDING}"
            tensors = {f"{key}/{part}": value for key, part, value in self._pending_parts()}
            sums = {place: f"{_checksum(value):08x}" for place, value in tensors.items()}
            try:
                _write(self.folder, name, tensors, sums)
            except OSError as error:
                self._stop(error)
            self._pending, self._pending_bytes = {}, 0
        self.refresh()

    def check(self) -> int:
        """Read every entry on disk, delete what is damaged, and say how many entries were lost."""
        before = len(self._shard_of)
        for key in sorted(self._shard_of, key=self._shard_of.__getitem__):
            if key in self._shard_of:
                self.get(key)
        return before - len(self._shard_of)

    def _stop(self, error: OSError) -> None:
        """Write no more, and say why: a run goes on without its cache."""
        self.stopped = str(error)
        self._announce(
            f"the cache cannot be written to {self.folder} ({error}): nothing more is kept there, the run "
            "goes on and encodes what is missing each time. Make room, or give another data.cache.folder, "
            "when the run is next started; a cache may be changed at any time"
        )

    def _pending_parts(self) -> Iterator[tuple[str, str, Tensor]]:
        for key, parts in self._pending.items():
            for part, value in parts.items():
                yield key, part, value

    def _index(self, path: Path) -> None:
        self._known.add(path.name)
        try:
            with safe_open(path, framework="pt") as shard:
                places = list(shard.keys())
        except FileNotFoundError:
            return
        except (SafetensorError, OSError) as error:
            self._discard(path, str(error))
            return
        for place in places:
            self._shard_of.setdefault(place.partition("/")[0], path.name)

    def _read(self, name: str, key: str) -> Parts:
        shard, places, sums = self._opened(name)
        parts = {}
        for place in places[key]:
            value = shard.get_tensor(place)
            if f"{_checksum(value):08x}" != sums.get(place):
                raise ValueError(f"{place} has another checksum than its header says")
            parts[place.partition("/")[2]] = value
        return parts

    def _opened(self, name: str) -> Any:
        """A shard, its tensors' names by entry, and their checksums; the last used ones stay open."""
        if name not in self._open:
            shard: Any = safe_open(self.folder / name, framework="pt")
            places: dict[str, list[str]] = {}
            for place in shard.keys():  # noqa: SIM118 - no mapping
                places.setdefault(place.partition("/")[0], []).append(place)
            self._open[name] = (shard, places, shard.metadata() or {})
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _discard(self, path: Path, problem: str) -> None:
        self._announce(f"{path} is damaged ({problem}); it is deleted, and its entries are encoded again")
        self._forget(path.name)
        with suppress(OSError):  # where nothing can be deleted it is only forgotten
            path.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)
        self._shard_of = {key: shard for key, shard in self._shard_of.items() if shard != name}


def _checksum(value: Tensor) -> int:
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data)


def _write(folder: Path, name: str, tensors: dict[str, Tensor], sums: dict[str, str]) -> None:
    """Write a shard, all or nothing.

    Raises:
        OSError: There is no room, or the disk fails; nothing half-written is left.
    """
    try:
        with atomic_file(folder / name) as draft:
            save_file({place: value.contiguous() for place, value in tensors.items()}, draft, metadata=sums)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{FILE_DRAFT}*"):
        try:
            if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                path.unlink(missing_ok=True)
        except OSError:  # gone by now, or not ours to delete
            continue
