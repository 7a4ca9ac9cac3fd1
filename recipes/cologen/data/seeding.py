"""Seeds that follow from names and numbers alone, the same on every machine."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A seed (63 bits) that depends on all parts and their order, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def view_rng(task: str, record_id: str, seed: int) -> np.random.Generator:
    """The random numbers of one view of one record."""
    return np.random.default_rng((seed, zlib.crc32(f"{task}/{record_id}".encode())))
