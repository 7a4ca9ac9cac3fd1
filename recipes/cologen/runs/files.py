"""The names of the files in a run's folder.

config.yaml   ledger.json   metrics.jsonl   skipped.jsonl   tensorboard/   report/
checkpoints/<stage>/{prw/, stage.json}                     a finished stage
checkpoints/latest/{prw/, state.json, training.pt}         the stage in progress, resumable
"""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
LEDGER = "ledger.json"
METRICS = "metrics.jsonl"
CARD = "data_card"
"""Name of the data card without its ending: it is written as JSON and as Markdown."""
CHECKPOINTS = "checkpoints"
LATEST = "latest"
POOL = "prw"
"""The folder that holds the pool, inside a checkpoint and inside a saved pipeline."""
STAGE = "stage.json"
STATE = "state.json"
TRAINING = "training"
"""Name of the optimiser's and random generators' state, without its ending."""
REPORT = "report"
SCORES = "scores.json"
PAGE = "index.html"


def stage_folder(run: Path, stage: str) -> Path:
    """Where a finished stage is kept."""
    return run / CHECKPOINTS / stage


def stage_file(run: Path, stage: str) -> Path:
    """The file that says that a stage is finished."""
    return stage_folder(run, stage) / STAGE


def pool_folder(run: Path, stage: str) -> Path:
    """The expert pool as it was when a stage ended."""
    return stage_folder(run, stage) / POOL


def latest_folder(run: Path) -> Path:
    """Where the stage in progress is kept."""
    return run / CHECKPOINTS / LATEST


def skipped_file(run: Path, rank: int) -> Path:
    """Where a process lists the rows that it skipped."""
    return run / ("skipped.jsonl" if rank == 0 else f"skipped-rank{rank}.jsonl")
