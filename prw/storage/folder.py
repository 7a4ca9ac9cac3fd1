"""A pool's folder: what lies in it, how it is saved, and how it is read; reading needs no model.

    adapter_model.safetensors   the weights, named as PEFT names them, and a summary of their configuration
    adapter_config.json         the configuration
    README.md                   the model card

The summary tells two saves apart: weights are never used with the configuration of another save.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prw.errors import PrwError, StorageError, UnsupportedError
from prw.layers import container_names
from prw.storage.atomic import DRAFT, atomic_folder
from prw.storage.sharded import one_writer, whole
from prw.tuner import PEFT_PREFIX, Layers, PrwConfig
from prw.tuner.card import README

ATTEMPTS = 3
"""How often a folder is read whose files change meanwhile."""
SUMMARY_KEY = "prw_pool"
"""Where in the metadata of a weights file the summary of its configuration is."""
SUMMARISED = (
    "experts",
    "imported",
    "newest_frozen",
    "rank",
    "alpha",
    "granularity",
    "gate",
    "router_norm",
    "train_veteran_gates",
)
"""Fields that give a pool's weights their meaning; the others may be edited in a saved configuration."""
SUMMARISED_IF_SET = ("alpha_pattern", "expert_ranks", "rank_pattern", "stages", "top_k")
"""Fields that do so too where they are not at their defaults; earlier folders have summaries without them."""


class SavedPool(NamedTuple):
    """What a pool's folder holds.

    Attributes:
        config: The adapter's configuration.
        weights: The weights by name, without adapter name, as PEFT writes them.
    """

    config: PrwConfig
    weights: dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------- saving


def save_pool(path: Path, layers: Layers, adapter: str, config: PrwConfig) -> None:
    """Save a pool; where FSDP2 has split it, every process calls this and rank 0 writes.

    Args:
        path: Folder to write.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        config: The pool's configuration.
    """
    parameters = pool_parameters(layers, adapter)
    weights = {name: whole(parameter) for name, parameter in parameters.items()}
    with one_writer(parameters.values()) as writes:
        if writes:
            write_folder(path, config, weights)


def pool_parameters(layers: Layers, adapter: str, experts: int | None = None) -> dict[str, nn.Parameter]:
    """Name the weights of a pool as PEFT's files do: base_model.model.<path>.prw_A0.weight.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        experts: Only those of the first so many experts; None means all.
    """
    wanted = None if experts is None else {name for i in range(experts) for name in container_names(i)}
    return {
        f"{PEFT_PREFIX}{path}.{name}.weight": getattr(layer, name)[adapter].weight
        for path, layer in layers.items()
        for name in layer.adapter_layer_names
        if adapter in getattr(layer, name) and (wanted is None or name in wanted)
    }


def write_folder(path: Path, config: PrwConfig, weights: dict[str, Tensor]) -> None:
    """Write a pool's folder; it appears whole or not at all."""
    if config.modules_to_save:
        raise UnsupportedError(
            f"the pool's configuration has modules_to_save={list(config.modules_to_save)}, which weave."
            "save_pretrained would leave out: it saves the experts only. Use save_pretrained of the PEFT or "
            "transformers model, and PeftModel.from_pretrained or load_adapter to load."
        )
    refuse_other_kind(path, "PRW")
    with atomic_folder(path, last=CONFIG_NAME) as draft:
        write_weights(draft / SAFETENSORS_WEIGHTS_NAME, weights, config)
        write_config(draft, config)
        config.card().save(draft / README)


def write_weights(file: Path, weights: dict[str, Tensor], config: PrwConfig) -> None:
    """Write weights with the summary of their configuration; equal pools give equal bytes."""
    save_file(weights, file, metadata={"format": "pt", SUMMARY_KEY: config_summary(config)})
    with file.open("r+b") as opened:  # safetensors writes its metadata in a random order, so sort it in place
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:
            opened.seek(8)
            opened.write(text)


def config_summary(config: PrwConfig) -> str:
    """Write down the fields of a configuration without which its weights mean nothing, as JSON."""
    default = PrwConfig()
    changed = [name for name in SUMMARISED_IF_SET if getattr(config, name) != getattr(default, name)]
    return json.dumps({name: getattr(config, name) for name in (*SUMMARISED, *changed)}, sort_keys=True)


def write_config(folder: Path, config: PeftConfig) -> None:
    """Write a PEFT configuration with its sets sorted, so that equal pools give equal files."""
    values = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def refuse_other_kind(path: Path, kind: str) -> None:
    """Refuse to write one kind of adapter over another: over the pool that it came from, or a user's LoRA."""
    if (path / CONFIG_NAME).is_file():
        found = read_config(path).get("peft_type")
        if found != kind:
            raise StorageError(
                f"{path} holds a {found} adapter, which a {kind} adapter would overwrite. Give another "
                "folder, or remove that one first."
            )


# --------------------------------------------------------------------------------------------------- reading


def read_folder(path: Path) -> SavedPool:
    """Read a pool's folder, also while it is being saved into."""
    for _ in range(ATTEMPTS):
        config = read_pool_config(path)
        weights, summary = read_summarised_weights(path)
        if summary in (None, config_summary(config)):
            return SavedPool(config, weights)
        for draft in path.glob(f"{DRAFT}*"):  # of a save that is under way, or was cut off
            with suppress(StorageError):
                config = read_pool_config(draft)
                if summary == config_summary(config):
                    return SavedPool(config, weights)
    raise StorageError(
        f"{path} mixes two saves: {SAFETENSORS_WEIGHTS_NAME} was saved with {summary}, {CONFIG_NAME} says "
        f"{config_summary(read_pool_config(path))}. One of the two was copied, edited or cut off; save the "
        "folder again, or restore the configuration that the weights were saved with."
    )


def read_pool_config(path: Path) -> PrwConfig:
    """Read the configuration of a pool's folder."""
    return pool_config(read_config(path), path / CONFIG_NAME)


def pool_config(values: dict[str, Any], file: Path) -> PrwConfig:
    """Make a pool's configuration of plain values.

    Args:
        values: What the file holds.
        file: Where they were read, for messages.
    """
    if values.get("peft_type") != "PRW":
        raise StorageError(
            f"{file} is of a {values.get('peft_type')} adapter, not of a PRW pool. Import a plain LoRA with "
            "weave.import_lora(path, name=...)."
        )
    try:
        config = PeftConfig.from_peft_type(**values)  # type: ignore[no-untyped-call]
    except (PrwError, TypeError, ValueError) as error:
        raise StorageError(f"{file} holds settings that cannot be used: {error}") from error
    if not isinstance(config, PrwConfig):
        raise StorageError(f"{file} gives a {type(config).__name__}, expected a PrwConfig.")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's PEFT configuration as plain values."""
    file = path / CONFIG_NAME
    if not file.is_file():
        found = (
            ", ".join(sorted(entry.name for entry in path.iterdir())) if path.is_dir() else "no such folder"
        )
        raise StorageError(
            f"{path} is not a saved adapter: it has no {CONFIG_NAME} (there is: {found or 'nothing'})."
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
    """Read a folder's weights onto the CPU."""
    return read_summarised_weights(path)[0]


def read_summarised_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a folder's weights onto the CPU, and the summary of their configuration.

    Files that PEFT wrote have no summary.
    """
    file = path / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise StorageError(
            f"{path} has a {CONFIG_NAME} but no {SAFETENSORS_WEIGHTS_NAME}. Copy or save it again."
        )
    weights, metadata = read_safetensors(file)
    return {plain_name(name): weight for name, weight in weights.items()}, metadata.get(SUMMARY_KEY)


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU: the tensors by name, and the file's metadata."""
    try:
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            return weights, opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(
            f"{file} is damaged, it cannot be read as a safetensors file: {error}. Copy or save it again."
        ) from error


def plain_name(name: str) -> str:
    """Give a weight's name without the layers around its projection.

    Where a LoRA was put around a pool, transformers' own saving once wrote <path>.base_layer.prw_A0.weight.
    """
    return re.sub(r"(\.base_layer)+(?=\.(prw|lora)_)", "", name)
