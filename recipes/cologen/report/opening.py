"""Opens a run for measuring: its settings, base and held-out pictures. Measuring itself is in cells.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.opening import held_out_records
from recipes.cologen.errors import RunFolderError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.report.cells import Scorer
from recipes.cologen.runs.files import CONFIG
from recipes.cologen.runs.loading import load_base
from recipes.cologen.runs.reader import RunReader


def open_scorer(
    path: Path,
    *,
    model: FluxBase | None = None,
    n: int | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Scorer:
    """Open the run in a folder.

    Args:
        path: The folder that training wrote, with at least one finished stage.
        model: The run's base without a pool; None loads it, onto the GPU where there is one.
        n: Held-out examples per task; None takes the run's `report.samples`.
        announce: Called with every cell that is measured anew.

    Raises:
        RunFolderError: The folder holds no run, no finished stage, or nothing held out.
        BaseModelError: The base is missing.
        FolderDataError: The folder of held-out pictures has a fault.
        AnnotatorError: What draws control maps cannot be loaded.
    """
    run = RunReader(path)
    if not run.finished_stages():
        raise RunFolderError(
            f"{path} has no finished stage yet, so there is nothing to measure. Train on: "
            f"python -m recipes.cologen.train --config {path / CONFIG} --output {path}"
        )
    source = held_out_records(run.settings.data)
    if source is None:
        raise RunFolderError(
            f"{path} holds no pictures out, so nothing can be scored. Name a folder of pictures that it "
            f"was not trained on as data.held_out (folder:PATH) in {path / CONFIG}"
        )
    if model is None:
        model = load_base(run.settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.long_prompts = run.settings.held_out_long_prompts
    wanted = run.settings.data.annotators if "control" in run.settings.stage_names else {}
    annotators = Annotators.load(wanted, model.device)
    return Scorer(model, run, source, n or run.settings.report.samples, announce, annotators)
