"""A base without weights: its parts as its folder's configs describe them, in tensors that hold no data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from recipes.cologen.config.model import MOST_TEXT_TOKENS
from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux.families import FAMILIES
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.folder import INDEX_FILE
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import install_source_stream

BLOCKS = ("num_layers", "num_single_layers")
"""What a transformer's config calls the numbers of its double and single blocks."""
SHAPES = Path(__file__).parents[1] / "assets" / "shapes"
PUBLISHED: dict[str, dict[str, Any]] = {
    "black-forest-labs/FLUX.1-dev": {},
    "black-forest-labs/FLUX.1-Kontext-dev": {},
    "black-forest-labs/FLUX.1-schnell": {"guidance_embeds": False},
}
"""Bases of FLUX.1-dev's shape by their names on the hub, and what else their configs say."""
PARTS: dict[type[FluxModel] | type[Flux2Model], tuple[str, ...]] = {
    FluxModel: ("transformer", "vae", "text_encoder", "text_encoder_2"),
    Flux2Model: ("transformer", "vae", "text_encoder"),
}
"""The parts of each family's bases that hold weights."""
LONGEST_TOKENIZER = {FluxModel: "tokenizer_2", Flux2Model: "tokenizer"}
"""The tokenizer whose length is that of the text tokens."""


@dataclass(frozen=True, eq=False)
class BaseShape:
    """The configs of a base's parts, and what can be built of them."""

    family: type[FluxModel] | type[Flux2Model]
    folder: Path
    classes: Mapping[str, str]
    """Class of each part, as `model_index.json` names it."""
    transformer: Mapping[str, Any]
    max_text_tokens: int

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same folder, parts and transformer."""
        return isinstance(other, BaseShape) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, ...]:
        configs = json.dumps([dict(self.classes), dict(self.transformer)], sort_keys=True)
        return self.family.__name__, str(self.folder.absolute()), configs, str(self.max_text_tokens)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that hold weights."""
        return PARTS[self.family]

    @property
    def blocks(self) -> tuple[int, int]:
        """Double and single blocks."""
        return (int(self.transformer[BLOCKS[0]]), int(self.transformer[BLOCKS[1]]))

    def build(
        self, dtype: torch.dtype, blocks: tuple[int, int] | None = None, *, encoders: bool = True
    ) -> FluxModel | Flux2Model:
        """Build the parts, frozen and in eval mode; called under `FakeTensorMode`, it takes no memory.

        Args:
            dtype: Of all weights.
            blocks: Double and single blocks, where others than the base's are wanted.
            encoders: Whether VAE and text encoders are built too, without which nothing can be encoded.
        """
        depth = dict(zip(BLOCKS, blocks or self.blocks, strict=True))
        absent: Any = None
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in self.parts if "text" in name]
        parts = dict.fromkeys((*self.parts, *tokenizers, "scheduler"), absent)
        with _default_dtype(dtype):
            kind = self._class("transformer", diffusers)
            parts["transformer"] = kind.from_config({**self.transformer, **depth})
            if encoders:
                parts["vae"] = self._vae()
                parts |= {name: self._encoder(name) for name in self.parts if "text" in name}
        for name in self.parts:
            if parts[name] is not None:
                parts[name].requires_grad_(False).eval()
        model = self.family(**parts, max_text_tokens=self.max_text_tokens)
        install_source_stream(model.transformer)
        return model

    def _encoder(self, name: str) -> Any:
        config = transformers.AutoConfig.from_pretrained(self.folder / name, local_files_only=True)
        return self._class(name, transformers)(config)

    def _vae(self) -> Any:
        kind = PixelUnshuffleVAE
        if self.classes["vae"] != PixelUnshuffleVAE.__name__:
            kind = self._class("vae", diffusers)
        return kind.from_config(read_json(self.folder / "vae" / "config.json"))

    def _class(self, part: str, library: Any) -> Any:
        name = self.classes[part]
        if not hasattr(library, name):
            raise BaseModelError(
                f"{self.folder / INDEX_FILE} names {name} as {part}, which {library.__name__} "
                f"{library.__version__} does not have. Install a version that does."
            )
        return getattr(library, name)


def find_shape(name: str, folder: Path, max_text_tokens: int | None = None) -> BaseShape:
    """Read the configs in a base's folder; of a published base that is not here, those of its shape.

    Args:
        name: What the settings call the base.
        folder: Where it would be on this machine.
        max_text_tokens: Length of prompts, where the settings give one.

    Raises:
        BaseModelError: As `read_shape`.
    """
    if folder.exists() or name not in PUBLISHED:
        shape = read_shape(folder)
    else:
        known = read_shape(SHAPES / "flux_dev")
        shape = replace(known, transformer={**known.transformer, **PUBLISHED[name]})
    return replace(shape, max_text_tokens=max_text_tokens or shape.max_text_tokens)


def read_shape(folder: Path) -> BaseShape:
    """Read the configs of a base's folder; its weights need not be there.

    Raises:
        BaseModelError: There is no such folder, or a config of it is missing or broken.
    """
    if not (folder / INDEX_FILE).is_file():
        raise BaseModelError(
            f"no FLUX base at {folder}: expected a diffusers folder with {INDEX_FILE}. Fetch one "
            "(hf download), or give its folder with --set base.path=PATH."
        )
    index = read_json(folder / INDEX_FILE)
    family = FAMILIES.get(str(index.get("_class_name")), FluxModel)
    lacking = [name for name in PARTS[family] if not isinstance(index.get(name), list)]
    if lacking:
        raise BaseModelError(
            f"{folder / INDEX_FILE} describes a {index.get('_class_name', 'pipeline of unknown class')} "
            f"without {', '.join(lacking)}, which a base of its family has. Give another --set "
            "base.path=PATH."
        )
    file = folder / LONGEST_TOKENIZER[family] / "tokenizer_config.json"
    tokens = read_json(file).get("model_max_length")
    if not isinstance(tokens, int):
        raise BaseModelError(
            f"{file} should give model_max_length, a number, but has {tokens!r}. Fetch the folder again."
        )
    tokens = min(tokens, MOST_TEXT_TOKENS)
    shape = BaseShape(
        family=family,
        folder=folder,
        classes={name: str(index[name][1]) for name in PARTS[family]},
        transformer=read_json(folder / "transformer" / "config.json"),
        max_text_tokens=tokens,
    )
    missing = [name for name in BLOCKS if name not in shape.transformer]
    if missing:
        raise BaseModelError(
            f"{folder / 'transformer' / 'config.json'} does not say {' and '.join(missing)}. "
            "Fetch the folder again."
        )
    return shape


def pixels_per_token(folder: Path) -> int | None:
    """Side of the square of pixels that one token of a base stands for; None where its VAE does not say."""
    try:
        channels = read_json(folder / "vae" / "config.json")["block_out_channels"]
        return int(2 ** len(channels))
    except (BaseModelError, KeyError, TypeError):
        return None


def read_json(file: Path) -> dict[str, Any]:
    """Read a config.

    Raises:
        BaseModelError: It is missing, or is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{file} cannot be read as JSON ({error}). Fetch the folder again.") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} should hold an object, but holds {content!r:.80}. Fetch it again.")
    return content


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
