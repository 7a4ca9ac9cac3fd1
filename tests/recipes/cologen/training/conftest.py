"""A FLUX with random weights as small as they come, and runs of a few steps on it."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from recipes.cologen.config.run import RunConfig, parse_config
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from recipes.cologen.training import loop
from recipes.cologen.training.run import Outcome, train

STAGES = {
    "inpainting": {"steps": 6, "batch_size": 4, "lr": 1e-2},
    "grounding": {"steps": 6, "batch_size": 4, "lr": 1e-2, "init": "previous"},
    "control": {"steps": 3, "batch_size": 4, "lr": 1e-2},
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Train with one thread: a forked process cannot use the OpenMP threads that its parent has started.

    For tests that kill a forked run; the runs that it is compared with must round alike.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random FLUX of width 32 with one double and one single block."""
    folder = tmp_path_factory.mktemp("base")
    sizes: dict[str, Any] = {"width": 32, "heads": 2, "axes": (4, 6, 6), "text_width": 16}
    model = build_tiny_flux(VOCABULARY, double_blocks=1, single_blocks=1, **sizes)
    save_tiny_flux(model, folder, torch.float32)
    return folder


@pytest.fixture
def config(base_path: Path) -> RunConfig:
    """Three stages of a few steps, with every random part switched on."""
    return make_config(base_path)


def make_config(base_path: Path, *overrides: str) -> RunConfig:
    """The tests' run on a base."""
    values = {
        "name": "test",
        "base": {"path": str(base_path)},
        "pool": {"rank": 4},
        "flow": {"source_timestep": "zero"},
        "dropout": {"text": 0.2, "source": 0.2},
        "stages": STAGES,
        "logging": {"every": 2, "checkpoint_every": 2, "plain_seconds": 1e9},
        "validation": {"every": 3, "samples": 2},
        "sampling": {"steps": 1},
        "report": {"samples": 2},
    }
    return parse_config(values, overrides)


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """Train quietly."""

    def quiet(config: RunConfig, output: Path, wanted: str = "all") -> Outcome:
        return train(config, output, wanted, Console(file=io.StringIO()))

    return quiet


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Let something happen right after the n-th optimiser step from now on, counted over stages."""

    def arrange(number: int, happen: Callable[[], None]) -> None:
        original, steps = loop.train_step, 0

        def counted(*arguments: Any) -> Any:
            nonlocal steps
            measured = original(*arguments)
            steps += 1
            if steps == number:
                happen()
            return measured

        monkeypatch.setattr(loop, "train_step", counted)

    return arrange


@pytest.fixture
def stop_at(at_step: Callable[..., None]) -> Callable[[int], None]:
    """Send this process SIGTERM right after its n-th step."""
    return lambda number: at_step(number, lambda: signal.raise_signal(signal.SIGTERM))
