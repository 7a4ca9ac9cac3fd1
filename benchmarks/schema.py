"""What a result file says: one group of cases, measured in turn on one device; anything else is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pass = Literal["forward", "training"]
"""`forward`: evaluation mode, no gradients. `training`: forward and backward in training mode."""
Kind = Literal[
    "grid", "peers", "skew", "kernels", "memory", "flux", "generation", "input", "checks", "ceilings"
]
SetName = Literal["smoke", "default", "full", "rehearsal"]
"""How much is measured: the first three on a CPU; `full` and the rehearsal on a GPU."""
Granularity = Literal["token", "sample"]
Routing = Literal["uniform", "90/10", "all to one", "half empty", "blobs"]
"""Who goes where: evenly at random; nine tenths to the newest expert; everything to it; evenly among the
newer half of the experts; evenly, but in runs of neighbours as in a picture."""
Launch = Literal["eager", "graph"]
Cache = Literal["mixed", "cold", "warm"]
"""Cold: flushed before the run. Warm: the same case has just run. Mixed: what the case before left."""
REHEARSAL = "cpu rehearsal"
"""Device of results whose numbers mean nothing."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Strict):
    """Where it ran; the facts are those of the device that bear on the numbers."""

    cpu: str = Field(min_length=2)
    cores: AtLeastOne  # that this process may use
    threads: AtLeastOne  # of torch within one operation
    device: str = Field(default="cpu", min_length=2)
    facts: dict[str, int | str] = {}
    system: str
    memory_gb: Positive


class Origin(Strict):
    """What ran: code, versions, machine, date, seed."""

    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    changed: bool  # whether files differed from that commit
    code: str = Field(pattern=r"^[0-9a-f]{16}$")  # digest of every module that bears on the numbers
    date: datetime
    versions: dict[str, str]
    machine: Machine
    seed: int


class Point(Strict):
    """Sizes of one pair of projections and its experts; plain projections have rank and experts 0."""

    tokens: AtLeastOne  # of all samples, T
    width: AtLeastOne  # features in and out, d
    rank: Count = 0
    experts: Count = 0
    granularity: Granularity = "token"
    batch: AtLeastOne = 4  # samples that the tokens belong to
    routing: Routing = "uniform"
    dtype: str = "float32"  # of base, input and adapters

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.tokens % self.batch:
            raise ValueError(f"{self.tokens} tokens do not split into {self.batch} samples of one length")
        if self.experts > self.width:
            raise ValueError(f"{self.experts} experts need as many orthogonal router vectors, d={self.width}")
        return self

    def but(self, **changes: object) -> Self:
        """Copy with changes."""
        return self.model_validate({**self.model_dump(), **changes})

    def label(self) -> str:
        """Name it in a table."""
        said = f"T={self.tokens} d={self.width} r={self.rank} N={self.experts} {self.granularity}"
        return said if self.routing == "uniform" else f"{said} {self.routing}"


class Routed(Strict):
    """Where the items went, as recorded: shares of the newest, the least used and the most used expert."""

    newest: Share
    least: Share
    most: Share


class Timed(Strict):
    """A case and its time; the ratio, to the first case of the group, is the median of each round's."""

    case: str
    median_ms: Positive
    iqr_ms: NotNegative
    ratio: Positive
    ratio_iqr: NotNegative


class Row(Timed):
    """The projections of a site, timed."""

    point: Point
    launch: Launch = "eager"
    cache: Cache = "mixed"
    floor: Positive | None = None  # ratio that hardware allows, all fused; None for another computation
    routed: Routed | None = None


class Memory(Strict):
    """A case's activation memory in one forward and backward."""

    case: str
    point: Point
    saved_mib: NotNegative  # what autograd keeps for backward: each storage once, parameters not
    peak_mib: NotNegative  # most at once above the resting level, outputs and gradients included


class Step(Timed):
    """One step of a whole model, timed."""

    what: Literal["denoising step", "training step"]
    experts: Count
    trainable: Count
    ratio_to_lora: Positive  # on the same modules, by rounds
    routed: Routed | None = None


class Picture(Timed):
    """One way of generating a whole picture, timed; the peak of memory is above the weights."""

    steps: AtLeastOne
    text: Count  # tokens, as `noise` and `source` are of the pictures
    noise: AtLeastOne
    source: Count
    experts: Count
    kontext_ratio: Positive  # FluxKontextPipeline's time over this one's, by rounds
    weights_mib: Positive
    peak_mib: Positive


class Pipeline(Strict):
    """One way in, timed, from sampling an index to tokens; an example is a source, a target and a prompt."""

    source: Literal["folder", "parquet", "tar"]
    workers: Count
    cache: Literal["none", "full"]
    images_per_second: Positive
    iqr: NotNegative


class StepShare(Strict):
    """A training step of the tiny preset: medians over its steps."""

    stage: str
    workers: Count
    steps: int = Field(ge=5)
    step_ms: Positive  # all of it, from one step's end to the next one's
    waiting_ms: NotNegative  # for the next batch
    preparing_ms: NotNegative  # tokenising, uint8 to float, sampling noise and times, mixing them
    rest_ms: NotNegative  # logging, progress, counting
    outside: Share  # the three together, of all of it


class Check(Strict):
    """One check of one kernel's correctness; None: could not be made here, and the note says why."""

    kernel: str
    check: str
    passed: bool | None = None
    note: str = ""


class Ceiling(Strict):
    """What the device reached in this run, at the size of the plain projections."""

    tokens: int
    width: int
    flops_per_s: Positive  # the better of two plain products and one with both weights stacked
    bytes_per_s: Positive  # of a copy that reads and writes as many bytes, with a cold cache


class Failure(Strict):
    """A case that gave no number, and why: out of memory, or an error."""

    case: str
    point: Point | None = None
    why: str


class Result(Strict):
    """One file."""

    version: Literal[2] = 2
    kind: Kind
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    set: SetName
    origin: Origin
    passes: Pass | None = None
    rounds: AtLeastOne
    setup: dict[str, int | str] = {}  # geometry of a whole model, or sizes of the pictures that were read
    load: tuple[float, float] | None = None  # of the machine over the last minute, before and after
    times: tuple[Row, ...] = ()
    memory: tuple[Memory, ...] = ()
    steps: tuple[Step, ...] = ()
    pictures: tuple[Picture, ...] = ()
    pipelines: tuple[Pipeline, ...] = ()
    shares: tuple[StepShare, ...] = ()
    checks: tuple[Check, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    failures: tuple[Failure, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        lists = ("times", "memory", "steps", "pictures", "pipelines", "checks", "ceilings", "failures")
        if not any(getattr(self, name) for name in lists):
            raise ValueError(f"the result {self.name} holds neither a number nor a failure")
        return self
