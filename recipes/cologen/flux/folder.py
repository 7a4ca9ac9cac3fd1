"""Reads the parts of a FLUX pipeline from a diffusers folder, with or without the weightless pixel VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline

from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE

INDEX_FILE = "model_index.json"
PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")


def load_components(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load scheduler, VAE, text encoders, tokenizers and transformer by stock `FluxPipeline.from_pretrained`.

    Code in the folder is never run: a folder that names `PixelUnshuffleVAE` gets the class of this package.

    Raises:
        BaseModelError: if the folder is missing, is not a FLUX pipeline, or ships another VAE class of its
            own.
    """
    index = _read_index(folder)
    own_vae = _ships_own_vae(folder, index)
    # A part passed as None is not looked up, so the folder's own module is neither imported nor needed.
    skipped: dict[str, Any] = {"vae": None} if own_vae else {}
    pipeline = FluxPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **skipped)
    parts = {name: getattr(pipeline, name) for name in PARTS}
    if own_vae:
        parts["vae"] = PixelUnshuffleVAE.from_pretrained(folder / "vae", dtype=dtype)
    return parts


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX_FILE
    if not file.is_file():
        raise BaseModelError(
            f"no FLUX base at {folder}: expected a diffusers folder with {INDEX_FILE}. Pass the folder that "
            "FluxPipeline.save_pretrained (or huggingface-cli download) wrote."
        )
    index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in PARTS if not isinstance(index.get(name), list) or index[name][1] is None]
    if missing:
        raise BaseModelError(
            f"{file} describes a {index.get('_class_name', 'pipeline of unknown class')} without "
            f"{', '.join(missing)}, which a FLUX.1 base has. Use FLUX.1-dev, FLUX.1-schnell, "
            "FLUX.1-Kontext-dev, or the recipe's tiny base."
        )
    return index


def _ships_own_vae(folder: Path, index: dict[str, Any]) -> bool:
    library, class_name = index["vae"]
    if library == "diffusers":
        return False
    if class_name != PixelUnshuffleVAE.__name__:
        raise BaseModelError(
            f"{folder / INDEX_FILE} asks for the VAE class {library}.{class_name}, which would mean running "
            f"code from the folder. Expected a VAE of diffusers, or {PixelUnshuffleVAE.__name__}."
        )
    return True
