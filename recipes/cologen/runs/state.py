"""Where a stage is, and the random generators: what a resumed stage needs besides pool and optimiser."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field


class StageState(BaseModel):
    """How far a stage has come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    step: int = Field(default=0, ge=0)
    """Optimiser steps done in this stage."""
    position: int = Field(default=0, ge=0)
    """Draws given out in this stage, over all ranks."""
    metrics_length: int = Field(default=0, ge=0)
    """Bytes of metrics.jsonl when this was saved."""
    seconds: float = Field(default=0.0, ge=0)
    """Time this stage has taken so far."""
    skipped_steps: int = Field(default=0, ge=0)
    """Steps of this stage that were skipped because loss or gradient was not finite."""
    skipped_in_a_row: int = Field(default=0, ge=0)
    """Of these, how many came last, one after another."""
    window: tuple[tuple[float, float, float, float], ...] = ()
    """What the steps since the last row of metrics.jsonl measured on this rank (step.StepLosses)."""


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """The state of every random generator, as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": [name, keys.tolist(), place, has_gauss, cached],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put every random generator back where `capture_rng` found it."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
