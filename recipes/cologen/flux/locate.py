"""Finds a base: a folder on this machine, or a name on the Hugging Face hub, which is fetched once."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline

from recipes.cologen.errors import BaseModelError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HOW_TO_GET_ONE = (
    "Give a folder in diffusers' layout, or a name on the hub, with --set base.path=PATH. FLUX.1-dev and "
    "FLUX.1-Kontext-dev are gated and not for commercial use: read and accept the licence at "
    "https://huggingface.co/black-forest-labs/FLUX.1-dev, log in (hf auth login), then fetch the folder: "
    "hf download black-forest-labs/FLUX.1-dev --local-dir FLUX.1-dev --exclude 'flux1-*' "
    "'ae.safetensors'. FLUX.1-schnell is Apache-2.0. So is FLUX.2-klein-base-4B, for --config flux2_klein; "
    "its folder has one text_encoder and no text_encoder_2: hf download "
    "black-forest-labs/FLUX.2-klein-base-4B --local-dir FLUX.2-klein-base-4B. To try everything without: "
    "python -m recipes.cologen.tools.random_weights "
    "writes a small base of random weights (with --klein in FLUX.2's layout); the tiny base is "
    "recipes/cologen/assets/tiny_flux (if that is missing, restore it: git checkout "
    "recipes/cologen/assets)."
)


def locate_base(name: str, revision: str | None, local: Path) -> Path:
    """The folder of a base.

    Args:
        name: what the settings call it.
        revision: commit, tag or branch on the hub.
        local: where it would be on this machine.

    Raises:
        BaseModelError: it is neither here nor on the hub, or a local folder was asked for in a revision.
    """
    if local.exists():
        if revision is not None:
            raise BaseModelError(
                f"base.revision is {revision!r}, but {local} is a folder on this machine, which has no "
                "revisions: leave it out (--set base.revision=null)."
            )
        return local
    if not HUB_NAME.fullmatch(name):
        raise BaseModelError(f"there is no FLUX base at {local}. {HOW_TO_GET_ONE}")
    return _from_hub(name, revision, local)


def _from_hub(name: str, revision: str | None, local: Path) -> Path:
    try:
        # Only files of the pipeline's parts: the repository also holds the weights in another layout.
        return Path(DiffusionPipeline.download(name, revision=revision))
    except Exception as error:  # the hub's client raises its own, requests', httpx' and the system's errors
        said = str(error).strip().partition("\n")[0]
        at = f" at revision {revision!r}" if revision else ""
        raise BaseModelError(
            f"there is no FLUX base at {local}, and {name!r}{at} cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {said}). {HOW_TO_GET_ONE}"
        ) from error
