"""Loads a base of whichever family its folder names: FLUX.1 or FLUX.2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.folder import INDEX_FILE, read_index
from recipes.cologen.flux.model import FluxModel


class Family(Protocol):
    """A class whose bases have one layout."""

    def load(self, path: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> FluxBase:
        """Load a base, frozen, in eval mode, with the source stream installed."""


FAMILIES: dict[str, type[FluxModel] | type[Flux2Model]] = {
    "FluxPipeline": FluxModel,
    "FluxKontextPipeline": FluxModel,
    "CoLoGenPipeline": FluxModel,
    "Flux2KleinPipeline": Flux2Model,
    "Flux2KleinKVPipeline": Flux2Model,
    "CoLoGenFlux2Pipeline": Flux2Model,
}
"""By the class of pipeline that a folder's index names."""


def load_base_model(path: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> FluxBase:
    """Load a base from a diffusers folder, frozen, in eval mode, with the source stream installed.

    Args:
        path: folder with `model_index.json`; the pipeline class named there decides the family.
        dtype: of all weights.
        **options: what the family's own `load` takes besides.

    Raises:
        BaseModelError: if the folder is missing, is of another family, or lacks something.
    """
    folder = Path(path)
    named = read_index(folder).get("_class_name")
    family = FAMILIES.get(str(named))
    if family is None:
        raise BaseModelError(
            f"{folder / INDEX_FILE} names a {named or 'pipeline of unknown class'}; this recipe loads "
            f"{', '.join(FAMILIES)}. A base of another kind needs a class that offers what "
            "recipes/cologen/flux/base.py asks for, and a row in FAMILIES of recipes/cologen/flux/families.py"
            ': see "Another MMDiT" in docs/recipes/flux2.md.'
        )
    return family.load(folder, dtype, **options)
