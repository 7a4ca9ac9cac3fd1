"""Ends a training process the hard way at a chosen moment, and says what a run left."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.runs import folder as run_folder
from recipes.cologen.training import context as context
from recipes.cologen.training import loop, step
from recipes.cologen.training.run import train
from recipes.cologen.training.validation import schedule as validating

MOMENTS = (
    "in a step",
    "while a checkpoint is written",
    "between the two renames of a checkpoint",
    "while a finished stage is written",
    "after a finished stage is renamed, before the ledger is written",
    "while the ledger is written",
    "in validation",
    "while a row is written",
)


def die() -> None:
    """End this process as `kill -9` does: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment: str, count: int) -> None:
    """Have this process die when it comes to a moment for the n-th time."""
    owner, name, when = {
        "in a step": (step, "batch_loss", "after"),
        "while a checkpoint is written": (context, "save_tensors", "before"),
        "between the two renames of a checkpoint": (Path, "rename", "after"),
        "while a finished stage is written": (run_folder.json, "dumps", "before"),
        "after a finished stage is renamed, before the ledger is written": (
            context,
            "note_progress",
            "before",
        ),
        "while the ledger is written": (run_folder, "write_text", "half"),
        "in validation": (validating, "evaluate_task", "after"),
        "while a row is written": (loop, "_log", "half row"),
    }[moment]
    original: Callable[..., Any] = getattr(owner, name)
    seen = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        if name == "note_progress" and arguments[2] != "finished":
            return original(*arguments, **named)
        if name == "rename" and not str(arguments[1]).endswith(".old"):
            return original(*arguments, **named)
        seen += 1
        if seen != count:
            return original(*arguments, **named)
        if when == "after":
            original(*arguments, **named)
        elif when == "half":
            path, text = arguments
            path.with_name(f".new-01234567-{path.name}").write_text(text[: len(text) // 2])
        elif when == "half row":
            with arguments[0].metrics.path.open("a") as file:
                file.write('{"kind": "train", "sta')
        return die()

    setattr(owner, name, deadly)


def in_child(work: Callable[[], Any]) -> int:
    """Do something in a forked process; give what it ended with: -9 when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def quiet(config: RunConfig, output: Path, wanted: str = "all") -> Any:
    """Train without a word."""
    return train(config, output, wanted, Console(file=io.StringIO()))


if (
    __name__ == "__main__"
):  # `-m tests.recipes.cologen.training.killing CONFIG OUTPUT MOMENT COUNT`, on rank 1
    if os.environ.get("RANK", "0") == os.environ.get("DEADLY_RANK", "0"):
        arrange(sys.argv[3], int(sys.argv[4]))
    quiet(load_config(sys.argv[1]), Path(sys.argv[2]))
