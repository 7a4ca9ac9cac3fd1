"""Tells which function of diffusers is asking a layer, where its name is the one sign of what is going on.

Diffusers calls the same methods for different ends: it reads a projection's weight to fuse projections, and
the model's state to save it or to measure a LoRA. It has no hook by which a layer could tell them apart, and
nothing of diffusers is replaced here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import FrameType

import torch

from prw.errors import UnsupportedError
from prw.layers import Site

FUSING = ("fuse_projections", "fuse_qkv_projections")
"""Copies the weights of separate projections into a new one."""
SAVING = ("save_pretrained",)
"""Writes a model, or all models of a pipeline."""
MEASURING = ("_maybe_expand_lora_state_dict",)
"""Looks up the width of what a FLUX.1 LoRA acts on, in the model's state."""
SCALING = ("_fuse_lora_apply", "fuse_text_encoder_lora")
"""Scales every adapter of a layer, then merges those that are asked for."""
NAMING = ("get_adapter_name",)
"""Counts the LoRAs of the first layer it meets, to name the next one."""
MOVING = ("set_lora_device",)
"""Moves the weights of LoRAs to a device."""
SAVING_ADAPTER = ("save_lora_adapter",)
"""Writes one adapter of a model, its settings beside it if the file can hold them."""
DEPTH = 8
"""How many callers up to look; other adapters may stand between."""
DEPTH_OF_STATE = 32
"""The same for `state_dict`, which has one caller for every module around."""


def asked_by(names: Collection[str], depth: int = DEPTH) -> FrameType | None:
    """Find the nearest caller that is one of some functions of diffusers.

    Args:
        names: Names of the functions.
        depth: How many callers up to look.
    """
    if torch.compiler.is_compiling():
        return None
    frame: FrameType | None = sys._getframe(2)
    for _ in range(depth):
        if frame is None:
            return None
        if frame.f_code.co_name in names and str(frame.f_globals.get("__name__")).startswith("diffusers"):
            return frame
        frame = frame.f_back
    return None


def refuse_fusing(sites: Mapping[str, Site]) -> None:
    """Refuse to show a projection's weight to diffusers' fusing, the one sign of it that a projection gets.

    Raises:
        UnsupportedError: names the projections of the site.
    """
    if sites and asked_by(FUSING):
        raise UnsupportedError(
            f"fuse_qkv_projections() would copy the base of {paths_of(sites)} into one new projection and "
            "leave the experts behind. Fuse the base model first and inject into the fused one, or call "
            "weave.eject() before fusing. (model.unfuse_qkv_projections() undoes what was fused so far.)"
        )


def refuse_saving(sites: Mapping[str, Site]) -> None:
    """Refuse to show the weights to diffusers' own saving, whose file no model could read.

    It would write the base of a projection under the name that it has inside its layer. On loading, that
    projection is then missing, and what it gives is undefined.

    Raises:
        UnsupportedError: names the projections of the site, and the calls that save a pool.
    """
    if sites and asked_by(SAVING, DEPTH_OF_STATE):
        raise UnsupportedError(
            f"save_pretrained of diffusers would write the base of {paths_of(sites)} under names that no "
            "model has, so that these projections are lost on loading. Save the pool: prw.save_pipeline("
            "pipe, path) or weave.save_pretrained(path); the base has not changed. To save the base too, "
            "call weave.eject() first, and load the pool again with prw.load(model, path). A folder that a "
            "pipeline has begun to write is incomplete: delete it."
        )


def refuse_without_settings() -> None:
    """Refuse to give a pool's weights to diffusers for a file that cannot hold the pool's settings.

    Raises:
        UnsupportedError: says what to leave out.
    """
    saving = asked_by(SAVING_ADAPTER)
    if saving and not saving.f_locals.get("safe_serialization", True):
        raise UnsupportedError(
            "save_lora_adapter(safe_serialization=False) would write the weights of the pool without its "
            "settings, so that nobody could load them. Leave safe_serialization out, or call "
            "weave.save_pretrained(path)."
        )


def free_name(taken: Collection[str]) -> range:
    """Give as many numbers as diffusers must count, so that the name it makes, `default_<count>`, is free.

    Args:
        taken: Names of the model's adapters.
    """
    count = 0
    while f"default_{count}" in taken:
        count += 1
    return range(count)


def paths_of(sites: Mapping[str, Site]) -> str:
    """List the projections of the first of a layer's sites."""
    return ", ".join(next(iter(sites.values())).projections)
