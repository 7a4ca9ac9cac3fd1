"""Reads a plain LoRA from wherever it is: a PEFT folder, a safetensors file of diffusers or kohya, a mapping.

Nothing here knows a model: modules keep the names that the file gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from prw.config import fits
from prw.errors import StorageError, first_few
from prw.storage.folder import read_config, read_safetensors, read_weights
from prw.tuner import PEFT_PREFIX

DIFFUSERS_WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"
EXTRAS = (
    "use_dora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""Fields of a LoRA's configuration that change what A and B mean, which an expert cannot reproduce."""
CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations of a LoRA that change the base's weights, so that A and B fit that changed base only."""
WEIGHT_NAME = re.compile(
    r"^(?P<module>.+?)(?:\.lora_(?P<peft>[AB])(?:\.(?!weight$)[^.]+)?|[._]lora[._](?P<other>down|up))\.weight$"
)
"""`x.lora_A.weight`, `x.lora_A.<adapter>.weight`, `x.lora.down.weight`, `x_lora.down.weight`,
`x.lora_down.weight`."""


class LoraPair(NamedTuple):
    """A LoRA at one module.

    Attributes:
        down: A, of shape [rank, d_in].
        up: B, of shape [d_out, rank].
        scale: Factor on its output.
    """

    down: Tensor
    up: Tensor
    scale: float


class ForeignLora(NamedTuple):
    """What a file holds.

    Attributes:
        source: Where it was read from, for messages.
        pairs: Module to its LoRA.
        others: Names of weights that are neither A nor B: biases, magnitudes, whole modules.
    """

    source: str
    pairs: dict[str, LoraPair]
    others: tuple[str, ...]


def read_foreign(source: str | Path | Mapping[str, Tensor]) -> ForeignLora:
    """Read a LoRA.

    Args:
        source: A PEFT folder; a folder with diffusers' weights, or a safetensors file; or weights by name, as
            diffusers' `lora_state_dict` gives them.
    """
    if isinstance(source, Mapping):
        return pairs_by_module("the given weights", source, {})
    if not isinstance(source, str | Path):
        raise StorageError(f"a LoRA is a path or weights by name, got a {type(source).__name__}.")
    path = Path(source)
    if path.name == SAFETENSORS_WEIGHTS_NAME and (path.parent / CONFIG_NAME).is_file():
        path = path.parent
    if path.is_dir() and (path / DIFFUSERS_WEIGHTS_NAME).is_file() and not (path / CONFIG_NAME).is_file():
        path = path / DIFFUSERS_WEIGHTS_NAME
    if path.is_file():
        return pairs_by_module(str(path), *read_file(path))
    values = read_config(path)
    check_plain(str(path), values)
    return pairs_by_module(str(path), read_weights(path), {"": values})


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Read a safetensors file, and the LoRA configurations in its metadata by component."""
    weights, metadata = read_safetensors(path)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in diffusers_config(metadata, path).items():
        component, _, field = key.rpartition(".")
        configs.setdefault(component, {})[field] = value
    for config in configs.values():
        check_plain(str(path), {"peft_type": "LORA", **config})
    return weights, configs


def diffusers_config(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """Read the adapter's configuration that diffusers writes into the metadata of its weights file."""
    try:
        values: dict[str, Any] = json.loads(metadata.get(DIFFUSERS_METADATA, "{}"))
    except ValueError as error:
        raise StorageError(f"{file} is damaged: its metadata is not JSON: {error}. Save it again.") from error
    return values


def check_plain(source: str, values: Mapping[str, Any]) -> None:
    """Refuse adapters that are not LoRAs, or whose A and B mean something else than a plain LoRA's."""
    extras = [name for name in EXTRAS if values.get(name)]
    if values.get("peft_type") != "LORA" or extras:
        raise StorageError(
            f"{source} is not a plain LoRA: it is a {values.get('peft_type')} adapter with "
            f"{', '.join(extras) or 'no extras'}. Only A and B on linear projections can become an expert."
        )
    init = values.get("init_lora_weights", True)
    if str(init).lower().startswith(CHANGED_BASE):
        raise StorageError(
            f"the LoRA in {source} has init_lora_weights={init!r}: its A and B belong to a base whose "
            "weights were changed when it was made, and this model's were not. Save it again with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), as a plain LoRA."
        )


def pairs_by_module(
    source: str, weights: Mapping[str, Tensor], configs: Mapping[str, Mapping[str, Any]]
) -> ForeignLora:
    """Find each module's A, B and scale among weights.

    Args:
        source: Where they are from.
        weights: Weights by name; a scalar `<module>.alpha` is that module's LoRA alpha.
        configs: Configuration of the LoRA by the component its modules' names start with.
    """
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    others = []
    for key, weight in weights.items():
        part = WEIGHT_NAME.match(key)
        if part is not None:
            side = downs if (part["peft"] or part["other"]) in ("A", "down") else ups
            side[part["module"].replace(".processor.", ".")] = weight
        elif key.endswith(".alpha") and weight.numel() == 1:
            alphas[key.removesuffix(".alpha")] = float(weight)
        else:
            others.append(key)
    if set(downs) != set(ups):
        raise StorageError(
            f"{source} is damaged: A without B, or B without A ({first_few(sorted(set(downs) ^ set(ups)))}). "
            "Copy or save it again."
        )
    odd = [name for name in downs if downs[name].shape[0] != ups[name].shape[1]]
    if odd:
        raise StorageError(
            f"{source} is damaged: A and B are of different rank ({first_few(odd)}). Copy or save it again."
        )
    pairs = {
        name: LoraPair(down, ups[name], scale_of(name, down.shape[0], alphas, configs))
        for name, down in downs.items()
    }
    return ForeignLora(source, pairs, tuple(others))


def scale_of(
    module: str, rank: int, alphas: Mapping[str, float], configs: Mapping[str, Mapping[str, Any]]
) -> float:
    """Compute a module's LoRA scale: by its own alpha, else by the configuration, else one, as diffusers."""
    if module in alphas:
        return alphas[module] / rank
    component = next((name for name in configs if module.startswith(f"{name}.")), "")
    if component not in configs:
        return 1.0
    values = configs[component]
    name = module.removeprefix(PEFT_PREFIX).removeprefix(f"{component}.")
    own = [alpha for key, alpha in (values.get("alpha_pattern") or {}).items() if fits(key, name)]
    alpha = float(own[0] if own else values["lora_alpha"])  # the first, which is the one that PEFT takes
    return float(alpha / (rank**0.5 if values.get("use_rslora") else rank))
