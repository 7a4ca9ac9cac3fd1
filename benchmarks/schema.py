"""What a result file says: one group of cases, measured in turn on one device; anything else is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pass = Literal["forward", "training"]
"""`forward`: evaluation mode, no gradients. `training`: forward and backward in training mode."""
Kind = Literal[
    "grid",
    "peers",
    "skew",
    "kernels",
    "memory",
    "flux",
    "generation",
    "input",
    "checks",
    "ceilings",
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
    device: str = Field(default="cpu", min_length=2)
    facts: dict[str, int | str] = {}
    """Of the device, as far as they bear on the numbers."""
    system: str
    memory_gb: Positive


class Origin(Strict):
    """What ran: code, versions, machine, date, seed."""

    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    changed: bool
    """Whether files differed from that commit."""
    code: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Digest of every module that bears on the numbers, as it ran."""
    date: datetime
    versions: dict[str, str]
    machine: Machine
    seed: int


class Point(Strict):
    """Sizes of one pair of projections and its experts; plain projections have rank and experts 0."""

    tokens: int = Field(ge=1)
    """All tokens of the batch, T."""
    width: int = Field(ge=1)
    """Features in and out, d."""
    rank: Count = 0
    experts: Count = 0
    granularity: Granularity = "token"
    batch: int = Field(default=4, ge=1)
    """Samples that the tokens belong to."""
    routing: Routing = "uniform"
    dtype: str = "float32"
    """Of base, input and adapters."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.tokens % self.batch:
            raise ValueError(f"{self.tokens} tokens do not split into {self.batch} samples of one length")
        if self.experts > self.width:
            raise ValueError(
                f"{self.experts} experts need as many orthogonal router vectors, but d={self.width}"
            )
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
    """A case and its time."""

    case: str
    median_ms: Positive
    iqr_ms: NotNegative
    ratio: Positive
    """To the first case of the group, timed in the same way: the median of the ratios of each round."""
    ratio_iqr: NotNegative


class Row(Timed):
    """The projections of a site, timed."""

    point: Point
    launch: Launch = "eager"
    cache: Cache = "mixed"
    floor: Positive | None = None
    """The ratio that the hardware's limits allow, with everything fused; None for another computation."""
    routed: Routed | None = None

    @property
    def marginal(self) -> float | None:
        """What the experts cost over what they must."""
        if self.floor is None or self.floor <= 1:
            return None
        return (self.ratio - 1) / (self.floor - 1)


class Memory(Strict):
    """A case's activation memory in one forward and backward, in MiB."""

    case: str
    point: Point
    saved_mib: NotNegative
    """What autograd keeps from forward for backward: each storage once, parameters not."""
    peak_mib: NotNegative
    """Most that was allocated at once above the resting level, outputs and gradients included."""


class Step(Timed):
    """One step of a whole model, timed."""

    what: Literal["denoising step", "training step"]
    experts: Count
    trainable: Count
    ratio_to_lora: Positive
    """To PEFT LoRA on the same modules, by rounds."""
    routed: Routed | None = None


class Picture(Timed):
    """One way of generating a whole picture, timed."""

    steps: int = Field(ge=1)
    text: Count
    """Tokens of the text, as `noise` and `source` are of the pictures."""
    noise: int = Field(ge=1)
    source: Count
    experts: Count
    kontext_ratio: Positive
    """Time of FluxKontextPipeline over this one's, by rounds: how many times faster this one is."""
    weights_mib: Positive
    peak_mib: Positive
    """Most that was allocated at once above the weights."""


class Pipeline(Strict):
    """One way in, timed: from sampling an index to tokens."""

    source: Literal["folder", "parquet", "tar"]
    workers: Count
    cache: Literal["none", "full"]
    images_per_second: Positive
    """Examples, each a source, a target and a prompt; the median of the rounds."""
    iqr: NotNegative


class StepShare(Strict):
    """A training step of the tiny preset, in milliseconds: medians over its steps."""

    stage: str
    workers: Count
    steps: int = Field(ge=5)
    step_ms: Positive
    """All of it, from one step's end to the next one's."""
    waiting_ms: NotNegative
    """For the next batch."""
    preparing_ms: NotNegative
    """Tokenising, uint8 to float, drawing noise and times, mixing them."""
    rest_ms: NotNegative
    """Logging, progress, counting."""
    outside: Share
    """The three together, of all of it: the median over steps."""


class Check(Strict):
    """One check of one kernel's correctness."""

    kernel: str
    check: str
    passed: bool | None = None
    """None: could not be made here, and the note says why."""
    note: str = ""


class Ceiling(Strict):
    """What the device reached in this run, at the size of the plain projections."""

    tokens: int
    width: int
    flops_per_s: Positive
    """The better of the two plain products and of one product with both weights stacked."""
    bytes_per_s: Positive
    """Of a copy that reads and writes as many bytes as the plain projections, with a cold cache."""


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
    rounds: int = Field(ge=1)
    setup: dict[str, int | str] = {}
    """Geometry of a whole model, or sizes of the pictures that were read."""
    load: tuple[float, float] | None = None
    """Processes that wanted the machine, over the last minute, before and after."""
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
        lists = (
            "times",
            "memory",
            "steps",
            "pictures",
            "pipelines",
            "checks",
            "ceilings",
            "failures",
        )
        if not any(getattr(self, name) for name in lists):
            raise ValueError(f"the result {self.name} holds neither a number nor a failure")
        return self
