"""What every test shares: fixed seeds, a fixed number of threads, hypothesis without a time limit, `bits`."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.bit_tests import functions_that_compare_bits
from tests.other_rounding import imitate

# The machine's speed says nothing about correctness. In CI the examples are the same every time, so that a
# red run is about the change; at a desk they vary, so that new ones are found.
settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


if os.environ.get("PRW_TEST_ROUNDING"):  # set by scripts/test_cpus
    imitate(os.environ["PRW_TEST_ROUNDING"])


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start each test from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    yield


@pytest.fixture
def other_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one test as on a CPU where strided and contiguous inputs round differently."""
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)  # put back afterwards
    imitate("batched_products")


@pytest.fixture(scope="session", autouse=True)
def fixed_threads() -> None:
    """Keep torch to one thread: tiny tensors only lose by more, and test processes share the cores.

    `scripts/test_cpus` asks for two by PRW_TEST_THREADS.
    """
    torch.set_num_threads(int(os.environ.get("PRW_TEST_THREADS", "1")))


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that compares bits, so that none is forgotten."""
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in functions_that_compare_bits(item.path):
            item.add_marker("bits")
