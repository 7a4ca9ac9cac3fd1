"""What a committed result of the input benchmark says: pydantic models that refuse anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from benchmarks.schema import Origin, Positive, Share, Strict


class Pipeline(Strict):
    """One way in, timed: from a draw to tokens."""

    source: Literal["folder", "parquet", "tar"]
    workers: int = Field(ge=0)
    cache: Literal["none", "full"]
    images_per_second: Positive
    """Examples, each a source, a target and a prompt; the median of the rounds."""
    iqr: float = Field(ge=0)


class StepShare(Strict):
    """A training step of the tiny preset, in milliseconds: medians over its steps."""

    stage: str
    workers: int = Field(ge=0)
    steps: int = Field(ge=5)
    step_ms: Positive
    """All of it, from one step's end to the next one's."""
    waiting_ms: float = Field(ge=0)
    """For the next batch."""
    preparing_ms: float = Field(ge=0)
    """Tokenising, uint8 to float, drawing noise and times, mixing them."""
    rest_ms: float = Field(ge=0)
    """Logging, progress, counting."""
    outside: Share
    """The three together, of all of it: the median over steps."""


class InputResult(Strict):
    """One committed file."""

    version: Literal[1] = 1
    name: Literal["input"] = "input"
    set: Literal["default", "full"]
    origin: Origin
    load: tuple[float, float]
    """Processes that wanted the machine, over the last minute, before and after."""
    rounds: int = Field(ge=3)
    pictures: dict[str, int | str]
    """What was read: sizes, number, batch."""
    pipelines: list[Pipeline] = Field(min_length=1)
    steps: list[StepShare] = Field(min_length=1)


def read(path: Path) -> InputResult:
    """Read a result, strictly."""
    return InputResult.model_validate_json(path.read_text(encoding="utf-8"))


def write(result: InputResult, path: Path) -> None:
    """Write a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
