"""Settings of the data that a run is trained on: places, data sets, sizes, buckets, caches, licences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recipes.cologen.config.annotators import AnnotatorTable
from recipes.cologen.config.model import Settings
from recipes.cologen.stages import COLOGEN_STAGES

Side = Annotated[int, Field(gt=0)]
"""Pixels along one side of a picture."""
KINDS = ("parquet", "arrow", "hub", "tar", "json", "folder")
"""Kinds of source that `path` may begin with."""


class BucketSettings(Settings):
    """Sizes among which each picture gets the one nearest to its own shape. Without any there is one size."""

    sizes: tuple[tuple[Side, Side], ...] = ()
    """Heights and widths. FLUX.1 reads multiples of 16."""
    resolution: int | None = Field(default=None, gt=0)
    """Instead: sizes of about resolution x resolution pixels in all, from 1:2 to 2:1."""
    step: int = Field(default=16, gt=0)
    """Of which the sides of those are multiples."""
    group: int | None = Field(default=None, gt=0)
    """Examples in a row that share a bucket, a multiple of every micro-batch; None: a whole batch. A smaller
    group mixes sizes within a batch."""
    index: str | None = None
    """Folder for lists of picture sizes, so that headers are read but once; None: the user's cache folder."""

    @model_validator(mode="after")
    def _check(self) -> BucketSettings:
        if self.sizes and self.resolution is not None:
            raise ValueError("sizes and resolution are both given; give one of them")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes holds a size twice")
        return self

    @property
    def on(self) -> bool:
        """Whether there are buckets."""
        return bool(self.sizes) or self.resolution is not None


class CacheSettings(Settings):
    """Keeps what the frozen VAE and text encoders made of pictures and prompts, on disk."""

    folder: str | None = None
    """Where it is kept; several runs may share it. None: nothing is kept."""
    latents: bool = True
    """Whether pictures are kept: 131 kB each at 512x512 in bfloat16, twice that in float32."""
    text: bool = True
    """Whether prompts are kept: 4 MB each with FLUX.1's 512 tokens in bfloat16."""
    stages: tuple[str, ...] | None = None
    """Stages whose data is kept, also where another stage replays them; None: all. Large ones cost more disk
    than they save time."""
    shard_mb: int = Field(default=128, gt=0)
    """Size of the files; what has not filled one yet is lost by a kill, and encoded again."""


class SetSettings(BaseModel):
    """One data set of `data.sets`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str
    """How its rows are read: a published set's name, or `own` or `paired`; see `data/layouts`."""
    path: str
    """`parquet:FILES`, `arrow:FOLDER`, `hub:NAME`, `tar:FILES`, `json:FILES` or `folder:PATH`. FILES are
    paths and glob patterns with commas between them."""
    images: str | None = None
    """The folder that file names in the rows start from; None: that of the rows' own file."""
    additions: str | None = None
    """A `.jsonl` that brings what the rows lack, such as captions or objects, matched by file name."""
    split: str = "train"
    """Of a hub's data set, or of an arrow folder that has several."""
    subset: str | None = None
    """Configuration of a hub's data set."""
    revision: str | None = None
    """Commit of a hub's data set; for others, what the record and the data card call the version."""
    licence: str | None = None
    """Overrides the layout's; needed for your own data if `data.licence` is to let it pass."""
    tasks: tuple[str, ...] | None = None
    """Stages that it serves; None: all that its layout can."""
    repeat: int = Field(default=1, gt=0)
    """How often it is in one epoch of its stages: a small set among large ones may come more often."""
    options: dict[str, float] = {}
    """The layout's own settings, such as `min_score`."""

    @model_validator(mode="after")
    def _check(self) -> SetSettings:
        if self.path.partition(":")[0] not in KINDS or not self.path.partition(":")[2]:
            kinds = ", ".join(f"{kind}:..." for kind in KINDS)
            raise ValueError(f"path is {self.path!r}; expected one of {kinds}")
        unknown = sorted(set(self.tasks or ()) - set(COLOGEN_STAGES))
        if unknown:
            raise ValueError(f"tasks names {', '.join(unknown)}; expected {', '.join(COLOGEN_STAGES)}")
        return self


class DataSettings(BaseModel):
    """Where pictures come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "world"
    """`world` (the embedded one), `folder:PATH`, or `sets`: those of `data.sets`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the world, of the order of pictures, of views, noise, dropout and the experts' start."""
    held_out: str | None = None
    """Where validation's and report's pictures come from: `world`, `folder:PATH` of another folder, or
    `sets`: those of `data.held_out_sets`. None: the world, for a run on the world; a run on other pictures
    then holds nothing out, and is neither validated nor scored."""
    held_out_seed: int = Field(default=1_000_003, ge=0)
    """Seed of validation's and report's world, views and noise; another one than `seed`."""
    size: tuple[Side, Side] | None = None
    """Height and width that pictures get; None keeps their own, which then must all be alike."""
    sets: dict[str, SetSettings] = {}
    """Data sets by names of your own."""
    held_out_sets: dict[str, SetSettings] = {}
    """Data sets that are only measured on."""
    licence: Literal["any", "permissive"] | tuple[str, ...] = "any"
    """Which licences of data sets are trained on; others are left out, as the data card says."""
    empty_captions: Literal["refuse", "allow"] = "refuse"
    """Whether rows of data sets without a caption or prompt are an error."""
    max_broken: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of rows that may be skipped because they cannot be read."""
    max_sources: int = Field(default=1, gt=0)
    """Source pictures that a pair may have; one with more is an error. All pairs of a batch have as many."""
    annotators: AnnotatorTable = {}
    """What makes the control maps that are not stored, by map; without one there are edges and lines by
    OpenCV, and neither depth nor classes."""
    buckets: BucketSettings = BucketSettings()
    """Several sizes instead of one, for pictures of many shapes."""
    cache: CacheSettings = CacheSettings()
    """Whether latents and text embeddings are kept on disk."""

    @property
    def held_out_place(self) -> str | None:
        """Where held-out pictures come from; None where nothing is held out."""
        return self.held_out or ("world" if self.source == "world" else None)

    @model_validator(mode="after")
    def _check_sets(self) -> DataSettings:
        for key, place, sets in (
            ("source", self.source, self.sets),
            ("held_out", self.held_out, self.held_out_sets),
        ):
            name = "sets" if key == "source" else "held_out_sets"
            if place == "sets" and not sets:
                raise ValueError(f"data.{key} is 'sets', but data.{name} names none")
            if sets and place != "sets":
                raise ValueError(
                    f"data.{name} names {', '.join(sets)}, but data.{key} is {place!r}, which reads none of "
                    f"them. To read {place!r} take the data sets out (--set 'data.{name}={{}}'"
                    + ("; --data does it by itself)" if key == "source" else ")")
                    + f"; to read the data sets set data.{key} to 'sets'"
                )
        if self.annotators and self.source == "world":
            raise ValueError("data.annotators are for pictures from elsewhere; the world draws its own maps")
        if self.buckets.on and (self.size is not None or self.source == "world"):
            raise ValueError(
                "data.buckets is for pictures of many shapes, in place of data.size and not of the world; "
                "leave one of them out"
            )
        if self.cache.folder is not None and self.source == "world":
            raise ValueError(
                "data.cache is for pictures that come again; the world's are endless. Leave data.cache out"
            )
        return self
