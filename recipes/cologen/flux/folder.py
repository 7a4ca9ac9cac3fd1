"""Reads the parts of a pipeline from a diffusers folder, with or without the weightless pixel VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline, FluxPipeline, PipelineQuantizationConfig

from recipes.cologen.config.model import Quantisation
from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.quantisation import quantization_config

INDEX_FILE = "model_index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the few lines begin that stand for a large file in a clone made without git-lfs."""


class Layout(NamedTuple):
    """What the folder of a family's base holds."""

    family: str
    pipeline: type[DiffusionPipeline]
    """The stock pipeline that loads it."""
    parts: tuple[str, ...]
    """Its folders and entries of the index that are needed."""
    published: str
    """Bases that have this layout, for the message that refuses another one."""


FLUX1 = Layout(
    "FLUX.1",
    FluxPipeline,
    ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer"),
    "FLUX.1-dev, FLUX.1-schnell, FLUX.1-Kontext-dev, or the recipe's tiny base",
)


def load_components(
    folder: Path, dtype: torch.dtype, layout: Layout = FLUX1, quantisation: Quantisation | None = None
) -> dict[str, Any]:
    """Load the parts of a base by the stock pipeline's `from_pretrained`.

    Code in the folder is never run: a folder that names `PixelUnshuffleVAE` gets the class of this package.

    Raises:
        BaseModelError: if the folder is missing, is of another layout, ships another VAE class of its own,
            or lacks a part of it; or a file of it is broken, or a pointer of git-lfs.
        MachineError: the transformer cannot be quantised here.
    """
    own_vae = check_base(folder, layout)
    options: dict[str, Any] = {}
    if quantisation is not None:
        mapping = {"transformer": quantization_config(quantisation, dtype)}
        options["quantization_config"] = PipelineQuantizationConfig(quant_mapping=mapping)
    try:
        return _load(folder, dtype, own_vae, layout, options)
    except Exception as error:  # diffusers, transformers and safetensors raise many kinds for a broken file
        raise BaseModelError(
            f"the FLUX base at {folder} cannot be loaded ({type(error).__name__}: {error}). A file of it is "
            "broken or missing: fetch the folder again."
        ) from error


def check_base(folder: Path, layout: Layout = FLUX1) -> bool:
    """Check the folder of a base before anything of it is loaded; say whether its VAE is `PixelUnshuffleVAE`.

    Raises:
        BaseModelError: as `load_components`.
    """
    index = read_index(folder)
    _check_parts(folder, index, layout)
    own_vae = _ships_own_vae(folder, index)
    _check_files(folder, layout.parts)
    return own_vae


def _load(
    folder: Path, dtype: torch.dtype, own_vae: bool, layout: Layout, options: dict[str, Any]
) -> dict[str, Any]:
    # A part passed as None is not looked up, so the folder's own module is neither imported nor needed.
    if own_vae:
        options = {**options, "vae": None}
    pipeline = layout.pipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    parts = {name: getattr(pipeline, name) for name in layout.parts}
    if own_vae:
        parts["vae"] = PixelUnshuffleVAE.from_pretrained(folder / "vae", dtype=dtype)
    return parts


def _check_files(folder: Path, parts: tuple[str, ...]) -> None:
    """Refuse a folder that lacks a part, or that git-lfs has not filled.

    Raises:
        BaseModelError: Names the parts, or the first file.
    """
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise BaseModelError(
            f"{folder} lacks {', '.join(missing)}, which its {INDEX_FILE} names. Fetch the whole folder "
            "(hf download), or give another one with --set base.path=PATH."
        )
    for file in sorted(file for name in parts for file in (folder / name).iterdir() if file.is_file()):
        with file.open("rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                raise BaseModelError(
                    f"{file} is a pointer of git-lfs, not the file itself. Install git-lfs and run "
                    "`git lfs pull` in that folder, or fetch it with hf download."
                )


def read_index(folder: Path) -> dict[str, Any]:
    """Read what a diffusers folder says of itself.

    Raises:
        BaseModelError: if it says nothing, or nothing that can be read.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        raise BaseModelError(
            f"no FLUX base at {folder}: expected a diffusers folder with {INDEX_FILE}. Pass the folder that "
            "FluxPipeline.save_pretrained (or hf download) wrote."
        )
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{file} cannot be read as JSON ({error}). Fetch the folder again.") from error
    if not isinstance(index, dict):
        raise BaseModelError(
            f"{file} should hold an object, but holds {index!r:.80}. Fetch the folder again."
        )
    return index


def _check_parts(folder: Path, index: dict[str, Any], layout: Layout) -> None:
    missing = [name for name in layout.parts if not _names_class(index.get(name))]
    if missing:
        raise BaseModelError(
            f"{folder / INDEX_FILE} describes a {index.get('_class_name', 'pipeline of unknown class')} "
            f"without {', '.join(missing)}, which a {layout.family} base has. Use {layout.published}."
        )


def _names_class(entry: object) -> bool:
    """Whether an entry of the index is a library and a class."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


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
