"""The one place that chooses how the routed projection is computed, and says why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch

from prw.config import KernelName
from prw.errors import ConfigError
from prw.kernels import grouped

NAMES: tuple[str, ...] = get_args(KernelName)
"""Every kernel by name; `auto` takes one of the others."""

VARIABLE = "PRW_KERNEL"
"""Environment variable that forces a kernel, read when a pool is made or loaded."""

DENSE_UP_TO: Mapping[str, int] = {"cuda": 320}
"""By kind of device: experts x rank up to which `dense` is taken, for each choice of an item.

Where a kind is missing it is a host (`cpu`: sorting was the fastest wherever kernels were measured by name,
docs/benchmarks.md), or one on which nothing but `dense` is known to run. The number for cuda comes from a
model of the H100, not yet from a measurement.
"""


class Choice(NamedTuple):
    """A kernel and the reason for it."""

    name: str
    why: str


class Case(NamedTuple):
    """What the choice of a kernel depends on.

    Attributes:
        device: Where the inputs are.
        dtype: Of the experts' arithmetic.
        experts: How many can be chosen.
        rank: The largest rank among them.
        top_k: Choices of each item.
        tokens_per_item: Rows of each item.
        wide: Width of the input.
    """

    device: torch.device
    dtype: torch.dtype
    experts: int
    rank: int
    top_k: int = 1
    tokens_per_item: int = 1
    wide: int = 8


def choose(case: Case, wanted: str = "auto") -> Choice:
    """Choose a kernel.

    Args:
        case: What it is for.
        wanted: Name of a kernel, or `auto`.

    Raises:
        ConfigError: if there is no such kernel, or `grouped` would have to wait for the device.
    """
    if wanted not in NAMES:
        raise ConfigError(f"there is no kernel {wanted!r}; kernels are {', '.join(NAMES)}.")
    if wanted == "grouped" and case.device.type == "cuda" and lacking(case):
        raise ConfigError(
            f"kernel='grouped' on CUDA needs {lacking(case)}; else torch would loop over the experts and "
            "wait for the device. Take kernel='auto' or 'dense'."
        )
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if case.device.type == "cpu":
        return Choice("grouped", "on a CPU, cost does not grow with the experts")
    limit = DENSE_UP_TO.get(case.device.type)
    if limit is None:
        return Choice("dense", f"the one that runs on any device, and {case.device.type} was not measured")
    total, limit = case.experts * case.rank, limit * case.top_k
    if total <= limit:
        return Choice("dense", f"experts x rank is {total}, at most {limit}")
    if lacking(case):
        return Choice("dense", f"experts x rank is {total}, above {limit}, but grouped needs {lacking(case)}")
    return Choice("grouped", f"experts x rank is {total}, above {limit}")


def lacking(case: Case) -> str:
    """Describe what `grouped` on CUDA lacks for a case; whole samples need no grouped_mm."""
    if case.tokens_per_item > 1:
        return ""
    return grouped.missing(case.device, case.dtype, case.rank, case.wide)


def forced(setting: str) -> tuple[str, str]:
    """Return the kernel that a pool uses and where that was set: the environment overrides the setting.

    Raises:
        ConfigError: if the environment names a kernel that there is not.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        return setting, "the setting `kernel`"
    if named not in NAMES:
        raise ConfigError(
            f"the environment variable {VARIABLE} is {named!r}, and there is no such kernel; kernels are "
            f"{', '.join(NAMES)}. Unset it, or name one of these."
        )
    return named, f"the environment variable {VARIABLE}"
