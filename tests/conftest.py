"""What every test shares: fixed seeds, one thread, and hypothesis without a stopwatch."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The machine's speed says nothing about correctness. In CI the examples are the same every time, so that a
# red run is about the change; at a desk they vary, so that new ones are found.
settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start each test from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch to one thread: tiny tensors only lose by more, and test processes share the cores."""
    torch.set_num_threads(1)
