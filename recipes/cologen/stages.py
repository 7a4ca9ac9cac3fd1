"""CoLoGen's five stages as the paper trains them (arXiv 2602.22150, "progressive training" and Table 1).

A config starts from these rows and overrides what it needs; how a stage is trained is in `training/`.
"""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ConfigDict, Field, field_validator

from recipes.cologen.errors import CologenError


class StageSettings(BaseModel):
    """How one stage trains its expert; the stage's name is also its task and its expert's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Examples a step, over all devices together."""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """Learning rate of AdamW."""
    rho: float = Field(ge=0, le=1)
    """Target share of the routing decisions that go to the stage's own expert (equation 9)."""
    alpha: float = Field(ge=0, allow_inf_nan=False)
    """Weight of the veteran loss (equation 9)."""
    init: str
    """Where the expert starts: `zero` (it changes nothing at first), `previous` (as a copy of the stage
    before), or the name of an earlier stage. The first stage always starts from zero."""
    replay: dict[str, float] = {}
    """Fraction of the examples of earlier stages' tasks, by stage; see `training/input/replay.py`."""

    @field_validator("replay")
    @classmethod
    def _leave_some(cls, replay: dict[str, float]) -> dict[str, float]:
        if any(not 0 < fraction < 1 for fraction in replay.values()) or sum(replay.values()) >= 1:
            raise ValueError("fractions are above 0, and together below 1: the stage's own task is the rest")
        return replay


class UnknownStageError(CologenError, ValueError):
    """A stage was named that the config does not have."""


# The paper says how experts are frozen and routed, not how a new one starts: `zero` is LoRA's own start.
COLOGEN_STAGES: dict[str, StageSettings] = {
    # t = 0, concept half of the "Concept-Localization Duality" pre-training: masked pictures are filled in.
    # JourneyDB, ADE20K, COCO-Stuff: 3M. A single expert has no veterans to share with: rho 1, alpha 0.
    "inpainting": StageSettings(steps=200_000, batch_size=256, lr=1e-4, rho=1.0, alpha=0.0, init="zero"),
    # t = 1, its localization half: what a phrase refers to is boxed or painted. RefCOCO/+/g, LVIS, 1M.
    "grounding": StageSettings(steps=200_000, batch_size=256, lr=1e-4, rho=0.8, alpha=0.5, init="zero"),
    # t = 2, "Conditional injection": canny, depth, HED, lineart, segmentation to pictures. MultiGen, 20M.
    "control": StageSettings(steps=400_000, batch_size=128, lr=1e-4, rho=0.8, alpha=0.5, init="zero"),
    # t = 3, "Instruction-image alignment": the same subject in another scene. Subjects200K.
    # The learning rate of t = 3 and 4 is not stated; that of the stages before is kept.
    "customization": StageSettings(steps=50_000, batch_size=128, lr=1e-4, rho=0.8, alpha=0.5, init="zero"),
    # t = 4, the same step's second half: instructions that edit. OmniEdit, MagicBrush and own data, 1.6M.
    "editing": StageSettings(steps=200_000, batch_size=128, lr=1e-4, rho=0.8, alpha=0.5, init="zero"),
}


PAIRED_TASKS = ("customization", "editing")
"""Tasks whose target is another picture than the record's own; they alone may have several sources."""


def select_stages(wanted: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that `all`, a name, or a range `FIRST..LAST` (either end may be left out) stands for.

    Raises:
        UnknownStageError: A name is not among `names`, or the range runs backwards.
    """
    if wanted == "all":
        return names
    first, dots, last = wanted.partition("..")
    if not dots:
        return (names[stage_index(first, names)],)
    start = stage_index(first, names) if first else 0
    end = stage_index(last, names) if last else len(names) - 1
    if start > end:
        raise UnknownStageError(
            f"--stage {wanted} runs backwards: {first!r} comes after {last!r}. Write --stage {last}..{first}."
        )
    return names[start : end + 1]


def stage_index(name: str, names: tuple[str, ...]) -> int:
    """Place of a stage in the curriculum, from 0.

    Raises:
        UnknownStageError: There is no such stage; the message names the nearest one.
    """
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownStageError(
        f"there is no stage {name!r}; expected 'all', a range 'FIRST..LAST', or one of "
        f"{', '.join(names)}.{hint}"
    )
