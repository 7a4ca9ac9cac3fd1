"""Saves a pool, alone or as one of several processes that hold parts of it."""

from __future__ import annotations

from pathlib import Path

from prw.storage.folder import write_folder
from prw.storage.sharded import one_writer
from prw.storage.state import pool_parameters, pool_state
from prw.tuner import Layers, PrwConfig


def save_pool(path: Path, layers: Layers, adapter: str, config: PrwConfig) -> None:
    """Save a pool; where FSDP2 has split it, every process calls this and rank 0 writes.

    Args:
        path: Folder to write.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        config: The pool's configuration.

    Raises:
        StorageError: if `path` is a file.
        UnsupportedError: if other modules were to be saved with the pool, which only PEFT does.
    """
    weights = pool_state(layers, adapter)
    with one_writer(pool_parameters(layers, adapter).values()) as writes:
        if writes:
            write_folder(path, config, weights)
