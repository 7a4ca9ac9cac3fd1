"""Stands between training and the frozen encoders: encodes pictures and prompts, or reads what was kept.

What can be kept does not depend on an example's seed: a batch names it by keys. An entry is always encoded
alone, so that it does not depend on the batch in which it happened to come first: a run on an empty cache, on
a full one and on one that was cut off all see the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.cologen.caching.fingerprints import text_fingerprint, vae_fingerprint
from recipes.cologen.caching.store import Parts, TensorStore
from recipes.cologen.config.data import CacheSettings
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.transfer import to_device, to_unit_range

Keys = Sequence[str | None]
"""A key for everything that can be kept, None for what comes but once; empty where nothing is kept."""


class Stores(NamedTuple):
    """The open caches; None where nothing of that kind is kept."""

    latents: TensorStore | None = None
    text: TensorStore | None = None


class Encoder:
    """The frozen encoders of a base, with a cache in front where there is one.

    Args:
        model: The base.
        device: Where pictures are encoded.
        stores: The caches.
        at_once: How many pictures or prompts are encoded together; None: all of a batch.
    """

    def __init__(
        self,
        model: FluxBase,
        device: torch.device,
        stores: Stores = Stores(),  # noqa: B008 - immutable
        at_once: int | None = None,
    ) -> None:
        """Take the parts; see the class."""
        self._model, self._device, self.stores, self._at_once = model, device, stores, at_once

    @torch.no_grad()
    def images(self, pixels: Tensor, keys: Keys = ()) -> ImageTokens:
        """Pictures uint8 `[batch, 3, height, width]` as tokens."""
        store = self.stores.latents
        if store is None or not any(keys):
            return _joined_images([self._encode_images(pixels[part]) for part in self._turns(len(pixels))])

        def make(index: int) -> Parts:
            return _image_parts(self._encode_images(pixels[index : index + 1]))

        entries = [_kept(store, key, make, index) for index, key in enumerate(keys)]
        return _joined_images([_image_of(parts, self._device) for parts in entries])

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str], keys: Keys = ()) -> TextTokens:
        """Prompts as embeddings.

        Raises:
            PromptError: A prompt is too long, and the base refuses those.
        """
        store = self.stores.text
        if store is None or not any(keys):
            turns = self._turns(len(prompts))
            return _joined_texts([self._model.encode_prompts(list(prompts[part])) for part in turns])

        def make(index: int) -> Parts:
            return _text_parts(self._model.encode_prompts([prompts[index]]))

        self.check_lengths(prompts)
        entries = [_kept(store, key, make, index) for index, key in enumerate(keys)]
        return _joined_texts([_text_of(parts, self._device) for parts in entries])

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the base refuses, though a run that cuts them may have kept them.

        Raises:
            PromptError: A prompt is too long.
        """
        if self._model.long_prompts == "refuse":
            for prompt in prompts:
                self._model.check_length(prompt)

    def facts(self) -> Iterator[str]:
        """How much each cache holds, in words."""
        for name, store in zip(Stores._fields, self.stores, strict=True):
            if store is not None:
                held = f"{len(store)} entries, {store.size_bytes() / 1e6:.1f} MB"
                yield f"cache of {name}: {held} in {store.folder}"

    def flush(self) -> None:
        """Write what the caches hold back."""
        for store in self.stores:
            if store is not None:
                store.flush()

    def stopped(self) -> str | None:
        """Why one of the caches is written no more; None as long as all are."""
        return next((store.stopped for store in self.stores if store is not None and store.stopped), None)

    def _encode_images(self, pixels: Tensor) -> ImageTokens:
        return self._model.encode_images(to_unit_range(pixels, self._device))

    def _turns(self, count: int) -> Sequence[slice]:
        size = self._at_once or count
        return [slice(start, start + size) for start in range(0, count, size)]


def open_encoder(
    model: FluxBase,
    device: torch.device,
    settings: CacheSettings,
    at_once: int | None = None,
    announce: Callable[[str], None] | None = None,
) -> Encoder:
    """The encoders of a base, with the caches that the settings ask for."""
    if settings.folder is None:
        return Encoder(model, device, at_once=at_once)
    root, size = Path(settings.folder).expanduser(), settings.shard_mb * 2**20
    latents = text = None
    if settings.latents:
        latents = TensorStore(root / f"latents-{vae_fingerprint(model)}", size, announce)
    if settings.text:
        text = TensorStore(root / f"text-{text_fingerprint(model)}", size, announce)
    return Encoder(model, device, Stores(latents, text), at_once)


def _kept(store: TensorStore, key: str | None, make: Callable[[int], Parts], index: int) -> Parts:
    """An entry as it is kept, made first if it is missing; without a key it is made and not kept."""
    found = None if key is None else store.get(key)
    if found is None:
        found = make(index)
        if key is not None:
            store.put(key, found)
    return found


def _image_parts(image: ImageTokens) -> Parts:
    # [1, rows * columns, channels] -> [rows, columns, channels]
    return {"tokens": image.tokens[0].unflatten(0, (image.rows, image.columns))}


def _image_of(parts: Parts, device: torch.device) -> ImageTokens:
    grid = to_device(parts["tokens"], device)
    return ImageTokens(grid.flatten(0, 1)[None], grid.shape[0], grid.shape[1])


def _text_parts(text: TextTokens) -> Parts:
    values = {field.name: getattr(text, field.name) for field in fields(text)}
    return {name: value[0] for name, value in values.items() if isinstance(value, Tensor)}


def _text_of(parts: Parts, device: torch.device) -> TextTokens:
    return TextTokens(**{name: to_device(value, device)[None] for name, value in parts.items()})


def _joined_images(images: Sequence[ImageTokens]) -> ImageTokens:
    if len(images) == 1:
        return images[0]
    return images[0].with_tokens(torch.cat([image.tokens for image in images]))


def _joined_texts(texts: Sequence[TextTokens]) -> TextTokens:
    if len(texts) == 1:
        return texts[0]
    names = [field.name for field in fields(texts[0]) if isinstance(getattr(texts[0], field.name), Tensor)]
    return TextTokens(**{name: torch.cat([getattr(text, name) for text in texts]) for name in names})
