"""The settings of a run that generating pictures with its pool repeats.

They are kept beside the pool, in `generation.json`. `generate`, the page, validation and the report take them
from the run's config; the pipelines take them from the run around a pool, or from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from recipes.cologen.config.annotators import AnnotatorTable
from recipes.cologen.config.data import Side
from recipes.cologen.config.errors import ConfigError, explain
from recipes.cologen.config.model import MOST_TEXT_TOKENS, Settings, Shift
from recipes.cologen.config.run import RunConfig
from recipes.cologen.data.buckets import Buckets, buckets_of
from recipes.cologen.data.scene import SIDE
from recipes.cologen.flux.base import SourceTimestep

GENERATION_FILE = "generation.json"
"""Beside a pool: its `GenerationSettings`."""


class GenerationSettings(Settings):
    """What generating with a pool repeats of the run that trained it; the defaults are for a pool alone."""

    source_timestep: SourceTimestep = "same"
    """Timestep of the source stream."""
    max_text_tokens: Annotated[int, Field(gt=0, le=MOST_TEXT_TOKENS)] | None = None
    """Tokens that a prompt is padded to. Padding is not masked, so another length is another input. None: as
    many as the base's tokenizer says."""
    max_sources: Annotated[int, Field(gt=0)] | None = None
    """Source pictures that an example had at most; None: not known."""
    sizes: tuple[tuple[Side, Side], ...] = ()
    """Heights and widths of the pictures; one gets that which is nearest to its shape. None: its own."""
    annotators: AnnotatorTable = Field(default={})
    """What makes a control map that is not given, by map; without one there are edges and lines by OpenCV."""
    shift: Shift = "base"
    """How the steps are shifted towards noise."""
    steps: Annotated[int, Field(gt=0)] = 28
    """Steps, where a call does not say how many."""
    guidance: float = 3.5
    """Scale of a guidance-distilled base, where a call does not say it."""
    true_cfg_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Scale of true guidance, where a call does not say it; 1 is none."""
    negative_prompt: str = ""
    """What that goes away from, where a call does not say it."""

    def size_of(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width that training gave a picture of such a shape; None where it kept its own."""
        return Buckets(self.sizes).nearest(height, width) if self.sizes else None


REPEATED: Mapping[str, str] = {
    "base.max_text_tokens": "max_text_tokens",
    "flow.source_timestep": "source_timestep",
    "data.source": "sizes",
    "data.size": "sizes",
    "data.buckets.sizes": "sizes",
    "data.buckets.resolution": "sizes",
    "data.buckets.step": "sizes",
    "data.max_sources": "max_sources",
    "data.annotators": "annotators",
    "sampling.shift": "shift",
    "sampling.steps": "steps",
    "sampling.guidance": "guidance",
    "sampling.true_cfg_scale": "true_cfg_scale",
    "sampling.negative_prompt": "negative_prompt",
}
"""Settings of a run that generation repeats, and the field of `GenerationSettings` that carries each."""
NOT_REPEATED: Mapping[str, str] = {
    "name": "a name",
    "base.path": "the user names a base; a pool that does not fit it is refused",
    "base.revision": "as base.path",
    "base.dtype": "the form of the base in memory: the commands repeat it, a pipeline's caller chooses it",
    "base.quantisation": "as base.dtype",
    "base.long_prompts": "a prompt that is too long is refused in any case",
    "data.seed": "of training's examples and noise",
    "data.held_out": "which examples are measured on",
    "data.held_out_seed": "as data.held_out",
    "data.held_out_sets": "as data.held_out",
    "data.sets": "which examples are trained on",
    "data.licence": "as data.sets",
    "data.empty_captions": "as data.sets",
    "data.max_broken": "as data.sets",
    "data.buckets.group": "how examples are put together",
    "data.buckets.index": "where sizes are kept",
    "data.cache": "where encodings are kept",
    "pool": "part of the pool's own file",
    "veteran": "a loss",
    "flow.guidance": "the scale of training; generation has sampling.guidance",
    "flow.timestep_mean": "which times are trained",
    "flow.timestep_std": "as flow.timestep_mean",
    "flow.shift": "as flow.timestep_mean; generation has sampling.shift",
    "flow.shift_steps": "as flow.shift",
    "optimizer": "how weights are changed",
    "dropout": "what training withholds",
    "stages": "how weights are changed; their names are the pool's experts",
    "machine": "how training fits a machine",
    "logging": "what is written down",
    "validation": "what is measured, and when",
    "report": "as validation",
}
"""Settings of a run, or groups of them, that generation does not repeat, and why."""


def generation_settings(config: RunConfig) -> GenerationSettings:
    """What a run fixes for generation."""
    data, sampling = config.data, config.sampling
    buckets = buckets_of(data.buckets)
    sizes = () if buckets is None else buckets.sizes
    if data.source == "world":
        sizes = ((SIDE, SIDE),)
    elif data.size is not None:
        sizes = (data.size,)
    return GenerationSettings(
        source_timestep=config.flow.source_timestep,
        max_text_tokens=config.base.max_text_tokens,
        max_sources=data.max_sources,
        sizes=sizes,
        annotators=data.annotators,
        shift=sampling.shift,
        steps=sampling.steps,
        guidance=sampling.guidance,
        true_cfg_scale=sampling.true_cfg_scale,
        negative_prompt=sampling.negative_prompt,
    )


def write_generation(pool: Path, settings: GenerationSettings) -> None:
    """Write the settings beside a pool, into its folder."""
    (pool / GENERATION_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_generation(pool: Path) -> GenerationSettings | None:
    """Read the settings beside a pool; None where there are none.

    Raises:
        ConfigError: The file is damaged, or holds settings that this version does not know.
    """
    file = pool / GENERATION_FILE
    if not file.is_file():
        return None
    try:
        return GenerationSettings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ConfigError(explain(error, GenerationSettings, str(file))) from error
