"""Reads and writes the folder of a pool: configuration, weights and card; needs no model."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor

from prw.errors import PrwError, StorageError, UnsupportedError
from prw.storage.atomic import DRAFT, atomic_folder
from prw.storage.stamp import read_stamped, stamp_of, write_stamped
from prw.tuner import PrwConfig
from prw.tuner.card import README, model_card

READS = 3
"""How often a folder is read whose files change meanwhile."""


class SavedPool(NamedTuple):
    """What a pool's folder holds.

    Attributes:
        config: The adapter's configuration.
        weights: The weights by name, without adapter name, as PEFT writes them.
    """

    config: PrwConfig
    weights: dict[str, Tensor]


def write_folder(path: Path, config: PrwConfig, weights: dict[str, Tensor]) -> None:
    """Save a pool; the folder appears whole or not at all.

    Raises:
        StorageError: if `path` is a file.
        UnsupportedError: if other modules were to be saved with the pool, which only PEFT does.
    """
    if config.modules_to_save:
        raise UnsupportedError(
            f"the pool's configuration has modules_to_save={list(config.modules_to_save)}, which weave."
            "save_pretrained would leave out: it saves the experts only. Use save_pretrained of the PEFT or "
            "transformers model, and PeftModel.from_pretrained or load_adapter to load."
        )
    refuse_other_kind(path, "PRW")
    with atomic_folder(path) as draft:
        write_stamped(draft / SAFETENSORS_WEIGHTS_NAME, weights, config)
        write_config(draft, config)
        (draft / README).write_text(model_card(config), encoding="utf-8")


def write_config(folder: Path, config: PeftConfig) -> None:
    """Write a PEFT configuration with its sets sorted, so that equal pools give equal files."""
    values = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_folder(path: Path) -> SavedPool:
    """Read a pool's folder, also while it is being saved into.

    Raises:
        StorageError: if the folder or a file is missing, damaged, or not of a pool; says which. Also if
            configuration and weights are of two saves.
    """
    for _ in range(READS):
        config = read_pool_config(path)
        weights, stamp = read_stamped_weights(path)
        if stamp in (None, stamp_of(config)):
            return SavedPool(config, weights)
        for draft in path.glob(f"{DRAFT}*"):  # of a save that goes on just now, or was cut off
            with suppress(StorageError):
                config = read_pool_config(draft)
                if stamp == stamp_of(config):
                    return SavedPool(config, weights)
    raise StorageError(
        f"{path} mixes two saves: {SAFETENSORS_WEIGHTS_NAME} was saved with {stamp}, {CONFIG_NAME} says "
        f"{stamp_of(read_pool_config(path))}. One of the two was copied, edited or cut off; save the folder "
        "again, or put back what the weights were saved with."
    )


def read_pool_config(path: Path) -> PrwConfig:
    """Read the configuration of a pool's folder.

    Raises:
        StorageError: if it is missing, damaged, or not of a pool.
    """
    return pool_config(read_config(path), path / CONFIG_NAME)


def pool_config(values: dict[str, Any], file: Path) -> PrwConfig:
    """Make a pool's configuration of plain values.

    Args:
        values: What the file holds.
        file: Where they were read, for messages.

    Raises:
        StorageError: if they are of another adapter, or cannot be used.
    """
    if values.get("peft_type") != "PRW":
        raise StorageError(
            f"{file} is of a {values.get('peft_type')} adapter, not of a PRW pool. A plain LoRA comes in "
            "with weave.import_lora(path, name=...)."
        )
    try:
        config = PeftConfig.from_peft_type(**values)  # type: ignore[no-untyped-call]
    except (PrwError, TypeError, ValueError) as error:
        raise StorageError(f"{file} holds settings that cannot be used: {error}") from error
    if not isinstance(config, PrwConfig):
        raise StorageError(f"{file} gives a {type(config).__name__}, expected a PrwConfig.")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's PEFT configuration as plain values.

    Raises:
        StorageError: if it is missing or no JSON object.
    """
    file = path / CONFIG_NAME
    if not file.is_file():
        there = (
            ", ".join(sorted(entry.name for entry in path.iterdir())) if path.is_dir() else "no such folder"
        )
        raise StorageError(
            f"{path} is not a saved adapter: it has no {CONFIG_NAME} (there is: {there or 'nothing'})."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(
            f"{file} is damaged, it is no JSON: {error}. Copy or save the folder again."
        ) from error
    if not isinstance(values, dict):
        raise StorageError(f"{file} is damaged: expected a JSON object, got a {type(values).__name__}.")
    return values


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a folder's weights onto the CPU.

    Raises:
        StorageError: if the file is missing or damaged.
    """
    return read_stamped_weights(path)[0]


def read_stamped_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a folder's weights, and what they say of their configuration.

    Raises:
        StorageError: if the file is missing or damaged.
    """
    file = path / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise StorageError(
            f"{path} has a {CONFIG_NAME} but no {SAFETENSORS_WEIGHTS_NAME}. Copy or save it again."
        )
    try:
        weights, stamp = read_stamped(file)
        return {plain_name(name): weight for name, weight in weights.items()}, stamp
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(
            f"{file} is damaged, it cannot be read: {error}. Copy or save the folder again."
        ) from error


def plain_name(name: str) -> str:
    """Give a weight's name without the layers around its projection.

    Where a LoRA was put around a pool, transformers' own saving once wrote <path>.base_layer.prw_A0.weight.
    """
    return re.sub(r"(\.base_layer)+(?=\.(prw|lora)_)", "", name)


def refuse_other_kind(path: Path, kind: str) -> None:
    """Refuse to write one kind of adapter over another: the pool that it came from, or a user's LoRA.

    Raises:
        StorageError: says what is there.
    """
    if (path / CONFIG_NAME).is_file():
        there = read_config(path).get("peft_type")
        if there != kind:
            raise StorageError(
                f"{path} holds a {there} adapter, which a {kind} adapter would overwrite. Give another "
                "folder, or remove that one first."
            )
