"""What a committed result says: pydantic models that refuse anything else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Pass = Literal["forward", "training"]
"""`forward`: evaluation mode, no gradients. `training`: forward and backward in training mode."""
Kind = Literal["grid", "peers", "skew", "kernels", "memory", "flux", "generation"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Strict):
    """Where it ran."""

    cpu: str = Field(min_length=2)
    cores: int = Field(ge=1)
    """Cores that this process may use."""
    threads: int = Field(ge=1)
    """Threads of torch within one operation."""
    device: str = "cpu"
    system: str
    memory_gb: Positive


class Origin(Strict):
    """What ran: code, versions, machine, date, seed."""

    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    changed: bool
    """Whether files differed from that commit."""
    code: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Digest of every module of prw and of the benchmarks as they ran."""
    date: datetime
    versions: dict[str, str]
    machine: Machine
    seed: int


class Where(Strict):
    """A point of the grid. Plain projections have rank and experts 0."""

    tokens: int = Field(ge=1)
    width: int = Field(ge=1)
    rank: int = Field(ge=0)
    experts: int = Field(ge=0)
    granularity: Literal["token", "sample"]
    batch: int = Field(ge=1)
    skew: Literal["uniform", "90/10", "all to one"]
    dtype: str


class Routed(Strict):
    """Where the items went, as recorded: shares of the newest, the least used and the most used expert."""

    newest: Share
    least: Share
    most: Share


class Timed(Strict):
    """One case, timed."""

    case: str
    where: Where
    median_ms: Positive
    iqr_ms: float = Field(ge=0)
    ratio: Positive
    """To the first case of the same file: the median of the ratios of each round."""
    ratio_iqr: float = Field(ge=0)
    floor: Positive | None = None
    """The ratio that arithmetic alone allows; None where the case computes something else."""
    routed: Routed | None = None


class Kept(Strict):
    """One case's activation memory in one forward and backward, in MiB."""

    case: str
    where: Where
    saved_mib: float = Field(ge=0)
    """What autograd keeps from forward for backward: each storage once, parameters not."""
    peak_mib: float = Field(ge=0)
    """Most that was allocated at once above the resting level, outputs and gradients included."""


class Step(Strict):
    """One step of a whole model, timed."""

    case: str
    what: Literal["denoising step", "training step"]
    experts: int = Field(ge=0)
    trainable: int = Field(ge=0)
    median_ms: Positive
    iqr_ms: float = Field(ge=0)
    ratio: Positive
    """To the plain model, as in `Timed`."""
    ratio_iqr: float = Field(ge=0)
    ratio_to_lora: Positive
    """To PEFT LoRA on the same modules, likewise by rounds."""
    routed: Routed | None = None


class Drawn(Strict):
    """One way of drawing a whole picture, timed."""

    case: str
    steps: int = Field(ge=1)
    text: int = Field(ge=0)
    """Tokens of the text, as `noise` and `source` are of the pictures."""
    noise: int = Field(ge=1)
    source: int = Field(ge=0)
    experts: int = Field(ge=0)
    median_ms: Positive
    iqr_ms: float = Field(ge=0)
    ratio: Positive
    """To text alone, as in `Timed`."""
    ratio_iqr: float = Field(ge=0)
    kontext_ratio: Positive
    """Time of FluxKontextPipeline over this one's, likewise by rounds: how many times faster this one is."""
    weights_mib: Positive
    peak_mib: Positive
    """Most that was allocated at once above the weights."""


class Result(Strict):
    """One committed file: what was measured together, round by round, in one process."""

    version: Literal[1] = 1
    kind: Kind
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    set: Literal["default", "full"]
    origin: Origin
    passes: Pass | None = None
    rounds: int = Field(ge=1)
    model: dict[str, int | str] = {}
    """Geometry of the model, where there is one."""
    timed: list[Timed] = []
    kept: list[Kept] = []
    steps: list[Step] = []
    drawn: list[Drawn] = []


def read(path: Path) -> Result:
    """Read a result, strictly."""
    return Result.model_validate_json(path.read_text(encoding="utf-8"))


def write(result: Result, folder: Path) -> Path:
    """Write a result into a folder, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(result.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    return path
