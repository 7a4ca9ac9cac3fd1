"""The note in a pool's weights of the configuration that they go with, so that two saves are never mixed."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prw.tuner import PrwConfig

KEY = "prw_pool"
NOTED = (
    "experts",
    "imported",
    "newest_frozen",
    "rank",
    "alpha",
    "granularity",
    "gate",
    "router_norm",
    "train_veteran_gates",
)
"""What gives a pool's weights their meaning; other settings may be edited in a saved configuration."""
NOTED_IF_SET = ("alpha_pattern", "expert_ranks", "rank_pattern", "stages", "top_k")
"""The same, of later versions; left out at their defaults, so that earlier folders' stamps still hold."""


def stamp_of(config: PrwConfig) -> str:
    """Write down what of a configuration its weights cannot go without."""
    standard = PrwConfig()
    later = [name for name in NOTED_IF_SET if getattr(config, name) != getattr(standard, name)]
    return json.dumps({name: getattr(config, name) for name in (*NOTED, *later)}, sort_keys=True)


def write_stamped(file: Path, weights: dict[str, Tensor], config: PrwConfig) -> None:
    """Save weights with the stamp of their configuration; equal pools give equal bytes."""
    save_file(weights, file, metadata={"format": "pt", KEY: stamp_of(config)})
    with file.open("r+b") as opened:  # safetensors writes its metadata in a random order, so sort it in place
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:
            opened.seek(8)
            opened.write(text)


def read_stamped(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read weights onto the CPU and their stamp, which PEFT's own files and earlier versions' have not."""
    with safe_open(file, framework="pt") as opened:
        stamp = (opened.metadata() or {}).get(KEY)
        return {name: opened.get_tensor(name) for name in opened.keys()}, stamp  # noqa: SIM118  # no mapping
