"""A run folder as training leaves it: a tiny random base, three finished stages, made-up curves."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import prw
from recipes.cologen.config.run import parse_config
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Let each file choose its precision: accelerate keeps the first one of a process and refuses others."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


STAGES = ("inpainting", "grounding", "control")
"""Finished stages; editing is part of the run's config but has not been trained."""


def write_run(path: Path, base: Path) -> Path:
    """Write the folder of a run on the base, with random experts."""
    model = build_tiny_flux(VOCABULARY, width=32, heads=1, double_blocks=1, single_blocks=1, text_width=16)
    weights = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.3, generator=weights)
    save_tiny_flux(model, base, dtype=torch.float32)
    path.mkdir(parents=True)
    config = parse_config(
        {
            "name": "fake <run>",
            "base": {"path": str(base)},
            "stages": {stage: {"steps": 20, "batch_size": 2} for stage in (*STAGES, "editing")},
            "sampling": {"steps": 2},
            "report": {"samples": 5},
            "flow": {"source_timestep": "zero"},
        }
    )
    (path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    weave = prw.inject(model.transformer, rank=2)
    for stage in STAGES:
        weave.add_expert(stage)
        with torch.no_grad():
            for parameter in weave.trainable_parameters():
                parameter.normal_(std=0.4, generator=weights)
        folder = path / "checkpoints" / stage
        weave.save_pretrained(folder / "prw")
        (folder / "stage.json").write_text(json.dumps({"share": 0.8, "seconds": 12.5}), encoding="utf-8")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves()), encoding="utf-8")
    return path


def curves() -> Iterator[dict[str, object]]:
    """Rows of metrics.jsonl."""
    for number, stage in enumerate(STAGES):
        for step in range(5, 25, 5):
            share = 1.0 if number == 0 else 0.5 + 0.015 * step
            yield {
                "kind": "train",
                "stage": stage,
                "step": step,
                "loss": 1 / step + 0.1,
                "task_loss": 1 / step,
                "veteran_loss": 0.1,
                "share": share,
                "gate": 0.7,
                "lr": 1e-3,
                "seconds": 0.5 * step,
            }
        yield {"kind": "validation", "stage": stage, "step": 20, "scores": {stage: 0.5 + 0.1 * number}}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for all tests that only read it."""
    root = tmp_path_factory.mktemp("runs")
    return write_run(root / "fake", root / "base")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the test's own."""
    return write_run(tmp_path / "fake", tmp_path / "base")
