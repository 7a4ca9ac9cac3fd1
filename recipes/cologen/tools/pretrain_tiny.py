"""Pretrain the tiny source-aware base: `python -m recipes.cologen.tools.pretrain_tiny --output FOLDER`.

Text-to-image and generic source tasks (tools/pretraining/tasks.py), flow matching over all weights. It can be
stopped and run again; every step's data and noise follow from the seed and the step number alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from recipes.cologen.flux.tiny import save_tiny_flux
from recipes.cologen.tools.pretraining.scores import evaluate
from recipes.cologen.tools.pretraining.step import Settings, start, train_step, untrained


def append(path: Path, row: dict[str, object]) -> None:
    """Add a line to the log and show it."""
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)  # noqa: T201 - the log of a long run is its only face


def pretrain(settings: Settings, work: Path, output: Path, *, compiled: bool = False) -> None:
    """Train to the last step, saving as it goes, and write the base to `output`.

    `compiled` compiles the transformer's blocks first: minutes once, then steps a quarter faster.
    """
    work.mkdir(parents=True, exist_ok=True)
    model = untrained(settings)
    run = start(model, settings)
    if compiled:
        model.transformer.compile_repeated_blocks()
    state = work / "state.pt"
    if state.exists():
        run.load(state)
    losses: list[float] = []
    began = time.perf_counter()
    while run.step < settings.total_steps:
        losses.append(train_step(model, run, settings))
        if run.step % settings.save_every == 0 or run.step == settings.total_steps:
            run.save(state)
            row: dict[str, object] = {
                "step": run.step,
                "loss": round(float(np.mean(losses)), 5),
                "lr": settings.lr_at(run.step - 1),
                "seconds": round(time.perf_counter() - began, 1),
            }
            losses.clear()
            if run.step % settings.evaluate_every == 0 or run.step == settings.total_steps:
                row["scores"] = {k: round(v, 3) for k, v in evaluate(model, run.dialects, settings).items()}
            append(work / "log.jsonl", row)
    save_tiny_flux(model, output, torch.float16)


def main() -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.tools.pretrain_tiny", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "assets" / "tiny_flux")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretrain_tiny"), help="state and log of the run"
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--polish-steps", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--from-base", help="a base's folder to go on from; as a rule from nothing")
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks first (needs a C++ compiler)"
    )
    arguments = parser.parse_args()
    settings = Settings(
        steps=arguments.steps,
        polish_steps=arguments.polish_steps,
        seed=arguments.seed,
        lr=arguments.lr,
        from_base=arguments.from_base,
    )
    pretrain(settings, arguments.work, arguments.output, compiled=arguments.compile)


if __name__ == "__main__":
    main()
