"""Settings of how pictures reach the model: caches of what the frozen encoders make of them."""

from __future__ import annotations

from pydantic import Field

from recipes.cologen.config_model import Settings


class CacheSettings(Settings):
    """Keeps what the frozen VAE and text encoders made of pictures and prompts, on disk."""

    folder: str | None = None
    """Where it is kept; several runs may share it. None: nothing is kept."""
    latents: bool = True
    """Whether pictures are kept: 131 kB each at 512x512 in bfloat16, twice that in float32."""
    text: bool = True
    """Whether prompts are kept: 4 MB each with FLUX.1's 512 tokens in bfloat16."""
    stages: tuple[str, ...] | None = None
    """Stages whose data is kept; None: all. Large ones cost more disk than they save time."""
    shard_mb: int = Field(default=128, gt=0)
    """Size of the files; what has not filled one yet is lost by a kill, and encoded again."""
