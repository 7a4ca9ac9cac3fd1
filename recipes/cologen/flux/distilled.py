"""Tells a base that was distilled to few steps, which plain flow matching trains out of its distillation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recipes.cologen.config.run import RunConfig
from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux.folder import read_index

DISTILLED = {
    "FLUX.1-schnell": "FLUX.1-dev (--config flux_dev) or FLUX.1-Kontext-dev (--config flux_kontext)",
    "FLUX.2-klein-4B": "black-forest-labs/FLUX.2-klein-base-4B (--config flux2_klein)",
    "FLUX.2-klein-9B": "black-forest-labs/FLUX.2-klein-base-9B",
    "FLUX.2-klein-9B-KV": "black-forest-labs/FLUX.2-klein-base-9B",
}
"""Published bases that are distilled to about four steps, and what to train on instead."""
OTHERS = "a base that is not distilled to few steps"


def base_warnings(config: RunConfig, folder: Path) -> Iterator[str]:
    """What to say of a run on a distilled base; nothing of others.

    Args:
        config: Of the run.
        folder: Where the base is, or would be.
    """
    name = published_name(config.base.path, folder)
    if name is None and not _says_so(folder):
        return
    yield (
        f"the base {name or config.base.path} is distilled to about four steps. Training here is plain flow "
        "matching, of a path of many steps: the more the experts learn, the less four steps are enough, and "
        f"pictures become blurred. Train on {DISTILLED.get(name or '', OTHERS)} instead; or keep this base, "
        "and look at pictures of validation at more steps too (--set sampling.steps=20)."
    )


def published_name(path: str, folder: Path) -> str | None:
    """The distilled base that a path, a name on the hub or a folder of the hub's cache is called after."""
    words = {part.casefold() for part in (*Path(path).parts, *folder.parts)}
    words |= {word.rpartition("--")[2] for word in words}
    return next((name for name in DISTILLED if name.casefold() in words), None)


def _says_so(folder: Path) -> bool:
    """Whether the index of a folder says that its pipeline is distilled, as klein's do."""
    try:
        index = read_index(folder)
    except BaseModelError:  # told by those who load it
        return False
    return bool(index.get("is_distilled", index.get("_class_name") == "Flux2KleinKVPipeline"))
