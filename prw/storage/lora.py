"""One expert as a plain PEFT LoRA folder, and a plain PEFT LoRA folder as one expert.

The router stays behind: an exported expert acts on every token with weight one, which is what it did where
the router was sure of it (probability gate) or always (unit gate).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from prw.config import PoolSettings
from prw.errors import StorageError
from prw.layers import pair_of
from prw.storage.atomic import atomic_folder
from prw.storage.folder import read_config, read_weights, write_config
from prw.storage.fused import check_fits, place
from prw.storage.state import PEFT_PREFIX, shown
from prw.tuner import Layers, PrwConfig, PrwLinear, pool_of

EXTRAS = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Fields of a LoRA's configuration for which an expert has no place."""
CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Starts of a LoRA that change the base's own weights, so that A and B belong to that changed base only."""


class LoraExpert(NamedTuple):
    """A and B of one expert at one projection: of shapes [rank, d_in] and [d_out, rank]."""

    down: Tensor
    up: Tensor


def write_lora(path: Path, layers: Layers, adapter: str, expert: str, config: PrwConfig) -> None:
    """Save one expert as a LoRA that stock PEFT loads.

    Args:
        path: Folder to write.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        expert: Name of the expert.
        config: The pool's configuration: the LoRA gets its rank and alpha.

    Raises:
        PoolError: if the pool has no such expert.
    """
    index, weights, ranks = pool_of(layers, adapter).index(expert), {}, {}
    for name, layer in layers.items():
        down, up = pair_of(layer, adapter, index)
        weights[f"{PEFT_PREFIX}{name}.lora_A.weight"] = down
        weights[f"{PEFT_PREFIX}{name}.lora_B.weight"] = up
        ranks[name] = down.shape[0]
    scale, rank = config.settings().scale, min(ranks.values())
    higher = {name: other for name, other in ranks.items() if other != rank}
    lora = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # PEFT takes a float as well
        rank_pattern=higher,
        alpha_pattern={name: scale * other for name, other in higher.items()},
        target_modules=sorted(layers),
        fan_in_fan_out=all(type(layer.get_base_layer()).__name__ == "Conv1D" for layer in layers.values()),
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    with atomic_folder(path) as draft:
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        save_file(tensors, draft / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        write_config(draft, lora)


def place_lora(pairs: dict[str, LoraExpert], layers: Layers, adapter: str, index: int) -> None:
    """Overwrite A and B of an expert at the projections that a LoRA adapts."""
    for name, pair in pairs.items():
        place(layers[name], adapter, index, pair.down, pair.up)


def read_lora(path: Path, layers: Layers, settings: PoolSettings, adapter: str) -> dict[str, LoraExpert]:
    """Read a plain LoRA folder as an expert of the given projections.

    The LoRA's own scale goes into B.

    Args:
        path: Folder of a plain PEFT LoRA.
        layers: The projections of the pool, by path.
        settings: The pool's settings.
        adapter: Adapter name.

    Returns:
        Projection path to A and B, for the projections that the LoRA adapts.

    Raises:
        StorageError: if the folder is no plain LoRA, adapts other modules, has too high a rank or another
        width.
    """
    values = read_config(path)
    check_plain(path, values)
    rank, alpha = int(values["r"]), float(values["lora_alpha"])
    scale = alpha / (rank**0.5 if values.get("use_rslora") else rank)
    pairs = paired(path, read_weights(path))
    strange = sorted(set(pairs) - set(layers))
    if strange:
        raise StorageError(
            f"the LoRA in {path} adapts {len(strange)} modules that have no experts {shown(strange)}, so it "
            f"cannot become an expert without loss. The pool's projections are {shown(sorted(layers))}."
        )
    factor = scale / settings.scale
    fit = {name: fitted(name, pair, layers[name], factor) for name, pair in pairs.items()}
    for name, pair in fit.items():
        check_fits(name, layers[name], adapter, settings.rank, pair.down, pair.up)
    return fit


def check_plain(path: Path, values: dict[str, Any]) -> None:
    """Refuse adapters that are no LoRA, or a LoRA with extras that an expert has no place for."""
    extras = [name for name in EXTRAS if values.get(name)]
    if values.get("bias", "none") != "none":
        extras.append("bias")
    if values.get("peft_type") != "LORA" or extras:
        raise StorageError(
            f"{path} is not a plain LoRA: it is a {values.get('peft_type')} adapter with "
            f"{', '.join(extras) or 'no extras'}. Only A and B on linear projections can become an expert."
        )
    start = str(values.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGED_BASE):
        raise StorageError(
            f"the LoRA in {path} has init_lora_weights={values['init_lora_weights']!r}: its A and B go with "
            "a base whose weights were changed when it was made, and this model's were not. Save it again "
            "with save_pretrained(..., path_initial_model_for_weight_conversion=...): that is a plain LoRA."
        )


def paired(path: Path, weights: dict[str, Tensor]) -> dict[str, LoraExpert]:
    """Sort a LoRA's weights by projection.

    Raises:
        StorageError: if a weight is no lora_A or lora_B, or one of the two is missing.
    """
    downs, ups = {}, {}
    for key, weight in weights.items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            downs[name.removesuffix(".lora_A.weight")] = weight
        elif name.endswith(".lora_B.weight"):
            ups[name.removesuffix(".lora_B.weight")] = weight
        else:
            raise StorageError(f"{path} holds {key}, which is no A or B of a plain LoRA.")
    if set(downs) != set(ups):
        raise StorageError(
            f"{path} is damaged: A without B, or B without A {shown(sorted(set(downs) ^ set(ups)))}."
        )
    return {name: LoraExpert(downs[name], ups[name]) for name in downs}


def fitted(name: str, pair: LoraExpert, layer: PrwLinear, factor: float) -> LoraExpert:
    """Give a LoRA pair the pool's scale.

    Raises:
        StorageError: if its widths are not the projection's.
    """
    widths = (layer.in_features, layer.out_features)
    if (pair.down.shape[1], pair.up.shape[0]) != widths:
        raise StorageError(
            f"the LoRA of {name} is {pair.down.shape[1]} -> {pair.up.shape[0]} wide, the projection is "
            f"{widths[0]} -> {widths[1]}. Likely another base model."
        )
    return LoraExpert(pair.down.float(), pair.up.float() * factor)
