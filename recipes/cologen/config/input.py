"""Settings of how pictures reach the model: aspect buckets, and caches of what the frozen encoders make."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from recipes.cologen.config.model import Settings

Side = Annotated[int, Field(gt=0)]
"""Pixels along one side of a picture."""


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
