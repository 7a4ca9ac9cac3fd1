"""What a result of the GPU benchmark says: pydantic models that refuse anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.gpu.device import REHEARSAL
from benchmarks.schema import Origin, Pass, Positive, Step, Strict

Routing = Literal["uniform", "90/10", "all to one", "half empty", "blobs"]
"""Who goes where: evenly at random; nine tenths to the newest; everything to it; evenly among the newer half
of the experts; evenly, but in runs of neighbours as in a picture."""
Launch = Literal["graph", "eager"]
Cache = Literal["cold", "warm"]
Mode = Literal["full", "quick", "rehearsal"]


class At(Strict):
    """A point; plain projections have rank and experts 0."""

    tokens: int = Field(ge=1)
    width: int = Field(ge=1)
    rank: int = Field(ge=0)
    experts: int = Field(ge=0)
    granularity: Literal["token", "sample"] = "token"
    batch: int = Field(default=4, ge=1)
    routing: Routing = "uniform"
    dtype: str = "bfloat16"

    def said(self) -> str:
        """Name it in words."""
        routing = "" if self.routing == "uniform" else f" {self.routing}"
        sample = " sample" if self.granularity == "sample" else ""
        return f"T={self.tokens} d={self.width} r={self.rank} N={self.experts}{sample}{routing}"


class Check(Strict):
    """One check of one kernel's correctness."""

    kernel: str
    check: str
    passed: bool | None
    """None: could not be made here, and the note says why."""
    note: str = ""


class Ceiling(Strict):
    """What the device reached in this run, at the size of the plain projections."""

    tokens: int
    width: int
    flops_per_s: Positive
    """The better of the two plain products and of one product with both weights stacked, by cuBLAS."""
    bytes_per_s: Positive
    """Of a copy that reads and writes as many bytes as the plain projections, with a cold cache."""


class Row(Strict):
    """One case, timed in one way."""

    case: str
    at: At
    passes: Pass
    launch: Launch
    cache: Cache
    median_us: Positive
    iqr_us: float = Field(ge=0)
    repeats_us: tuple[Positive, Positive]
    """The medians of the two repeats of which the median is made."""
    ratio: Positive
    """To the two plain projections, launched alike: the median of the ratios of each round."""
    ratio_iqr: float = Field(ge=0)
    floor_us: Positive | None = None
    """The larger of operations and bytes over their measured ceilings, as if everything were one kernel."""
    unfused_us: Positive | None = None
    """The same for each product as a kernel of its own, added up; LoRA first, then the base."""
    floor_over_time: Positive | None = None
    marginal: float | None = None
    """(time - plain) / (floor - plain): what the experts cost over what they must."""


class Peak(Strict):
    """Activation memory of one forward and backward."""

    case: str
    at: At
    saved_mib: float = Field(ge=0)
    """What autograd keeps for the backward: each storage once, parameters not, the input included."""
    peak_mib: float = Field(ge=0)
    """Most that was allocated at once above the resting level, outputs and gradients included."""


class Probe(Strict):
    """A prediction made before the first run on a GPU, and what was measured."""

    name: str = Field(pattern=r"^H[1-8]$")
    question: str
    predicted: str
    measured: str
    numbers: dict[str, float] = Field(default_factory=dict)
    held: bool | None = None
    """Whether the prediction held; None where it was not measured."""
    then: str = ""
    """What follows."""


class Failure(Strict):
    """A case that gave no number, and why: no memory, or an error."""

    case: str
    at: At | None
    why: str


class Group(Strict):
    """What was measured together."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    seconds: float = Field(ge=0)
    checks: tuple[Check, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    rows: tuple[Row, ...] = ()
    peaks: tuple[Peak, ...] = ()
    steps: tuple[Step, ...] = ()
    probes: tuple[Probe, ...] = ()
    failures: tuple[Failure, ...] = ()


class GpuResult(Strict):
    """One run on one device; written anew after every group."""

    version: Literal[1] = 1
    kind: Literal["gpu"] = "gpu"
    device: str = Field(min_length=2)
    facts: dict[str, int | str]
    mode: Mode
    origin: Origin
    harness: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Digest of this benchmark's own modules; `origin.code` is of the library and what is shared."""
    finished: bool
    left: tuple[str, ...] = ()
    """Groups that did not fit the budget, most important first."""
    groups: tuple[Group, ...] = ()

    def group(self, name: str) -> Group | None:
        """Give a group by name."""
        return next((group for group in self.groups if group.name == name), None)

    def rows(self) -> list[Row]:
        """Give every timed row."""
        return [row for group in self.groups for row in group.rows]

    def checks(self) -> list[Check]:
        """Give every check."""
        return [check for group in self.groups for check in group.checks]


def read(path: Path) -> GpuResult:
    """Read a result, strictly."""
    return GpuResult.model_validate_json(path.read_text(encoding="utf-8"))


def read_committed(path: Path) -> GpuResult:
    """Read a result that is to be published.

    Raises:
        ValueError: if it is a rehearsal, a quick run, unfinished, or of files that differ from its commit.
    """
    result = read(path)
    if result.device == REHEARSAL or result.mode == "rehearsal":
        raise ValueError(f"{path.name} is a rehearsal on a CPU, and its numbers mean nothing; remove it")
    if result.mode != "full" or not result.finished:
        raise ValueError(f"{path.name} is not a whole run; run `python -m benchmarks.gpu` to its end")
    if result.origin.changed:
        raise ValueError(f"{path.name} was measured on files that differ from commit {result.origin.commit}")
    return result
