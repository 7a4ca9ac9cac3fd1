"""Imports a plain LoRA as an expert: finds its projections in the pool, then copies A and B into an expert.

The LoRA's scale is folded into B. Of a fused projection only the rows of keys and values become an expert.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.config import PoolSettings
from prw.errors import StorageError, first_few
from prw.kernels import OutputSlice
from prw.layers import expert_names, pair_names
from prw.layers.experts import weight_of
from prw.storage.lora_files import ForeignLora, LoraPair
from prw.storage.sharded import put
from prw.tuner import PEFT_PREFIX, Layers, PrwLinear, holds

COMPONENTS = ("transformer", "unet", "diffusion_model", "text_encoder", "text_encoder_2", "text_encoder_3")
"""What a pipeline's LoRA file puts before the paths of one of its models."""
FLAT = re.compile(r"^lora_(?:unet|transformer|te\d?|prior_unet)_")
"""What kohya puts before a path whose dots it has turned into underscores."""
OTHER_ROWS = "rows that are neither keys nor values"
FLUX_FUSED = re.compile(
    r"(?:double_blocks[._](?P<double>\d+)[._](?P<stream>img|txt)_attn[._]qkv"
    r"|single_blocks[._](?P<single>\d+)[._]linear1)"
)
"""The original names of FLUX's fused projections, which kohya's and other trainers' files use."""


class LoraImport(NamedTuple):
    """What became of a LoRA that was imported.

    Attributes:
        expert: Name of the expert.
        source: Where it came from.
        ranks: Projection to the rank that it has there, for the projections that the LoRA adapts.
        dropped: What else the LoRA adapts, which the expert leaves out.
        without: Projections of the pool that the LoRA does not adapt; there the expert adds nothing.
    """

    expert: str
    source: str
    ranks: dict[str, int]
    dropped: tuple[str, ...]
    without: tuple[str, ...]


def fit_lora(
    lora: ForeignLora, layers: Layers, adapter: str, name: str, strict: bool
) -> tuple[dict[str, LoraPair], LoraImport]:
    """Find the LoRA's A and B for each of the pool's projections.

    Args:
        lora: The LoRA.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        name: Name that the expert will have.
        strict: Whether to refuse a LoRA that adapts anything else.

    Returns:
        Projection to its LoRA, and the report.
    """
    pairs: dict[str, LoraPair] = {}
    dropped = []
    flat = Counter(path.replace(".", "_") for path in layers)
    for module, pair in lora.pairs.items():
        places, left = places_of(module, pair, layers, flat)
        if not places or left:
            dropped.append(module.removeprefix(PEFT_PREFIX) + (f" ({left} {OTHER_ROWS})" if left else ""))
        for path, part in places.items():
            if path in pairs:
                raise StorageError(
                    f"{lora.source} has two LoRAs for {path}, likely of two models of a pipeline. Give the "
                    "weights of one as a mapping instead of the file."
                )
            check_widths(path, part, layers[path])
            if others := rows_left_out(layers[path], adapter, part.up):
                dropped.append(f"{path} ({others} {OTHER_ROWS})")
            pairs[path] = part
    refuse_more_than_lora(lora, layers)
    dropped = sorted(dropped + [key.removeprefix(PEFT_PREFIX) for key in lora.others])
    check_fit(lora, layers, bool(pairs), dropped, strict)
    ranks = {path: rank_needed(layers[path], adapter, pair.down, pair.up) for path, pair in pairs.items()}
    without = tuple(path for path in layers if path not in pairs)
    return pairs, LoraImport(name, lora.source, ranks, tuple(dropped), without)


def check_fit(lora: ForeignLora, layers: Layers, fits: bool, dropped: list[str], strict: bool) -> None:
    """Refuse a LoRA that fits nowhere, or one that would lose something where that is not allowed."""
    if not fits:
        raise StorageError(
            f"the LoRA in {lora.source} adapts none of the pool's projections ({first_few(sorted(layers))}), "
            f"only {len(dropped)} others ({first_few(dropped)}). Likely another base model, no LoRA on keys "
            "and values, or another library's names: those that diffusers knows it translates, as in "
            "import_lora(FluxPipeline.lora_state_dict(file), ...), with the pipeline of this model."
        )
    if strict and dropped:
        raise StorageError(
            f"the LoRA in {lora.source} adapts {len(dropped)} modules that have no experts "
            f"({first_few(dropped)}), so it cannot become an expert without loss. The pool's projections are "
            f"{first_few(sorted(layers))}. With strict=False only those are imported, and the rest reported."
        )


def places_of(
    module: str, pair: LoraPair, layers: Layers, flat: Mapping[str, int]
) -> tuple[dict[str, LoraPair], int]:
    """Find the projections that a LoRA's module stands for, and A and B of each.

    Returns:
        Projection to its LoRA, and how many rows that the LoRA changes belong to no projection.
    """
    path = place_of(module, layers, flat)
    if path is not None:
        return {path: pair}, 0
    fused = FLUX_FUSED.fullmatch(without_prefix(module))
    return ({}, 0) if fused is None else flux_places(fused, pair, layers)


def flux_places(fused: re.Match[str], pair: LoraPair, layers: Layers) -> tuple[dict[str, LoraPair], int]:
    """Cut a LoRA of one of FLUX's fused projections: rows q|k|v, and in single blocks those of the mlp."""
    block = "transformer_blocks" if fused["single"] is None else "single_transformer_blocks"
    block = f"{block}.{fused['double'] or fused['single']}.attn"
    for whole in ("to_qkv_mlp_proj", "to_qkv") if fused["stream"] != "txt" else ("to_added_qkv",):
        layer = layers.get(f"{block}.{whole}")
        if layer is not None:
            up, further = pair.up[: layer.out_features], pair.up[layer.out_features :]
            return {f"{block}.{whole}": pair._replace(up=up)}, int(further.any(dim=1).sum())
    named = "add_{}_proj" if fused["stream"] == "txt" else "to_{}"
    paths = [f"{block}.{named.format(letter)}" for letter in "qkv"]
    width = next((layers[path].out_features for path in paths if path in layers), None)
    if width is None:
        return {}, 0
    height = pair.up.shape[0]
    if height < 3 * width or (fused["single"] is None and height > 3 * width):
        return {
            path: pair for path in paths if path in layers
        }, 0  # of another width, which the caller reports
    rows = {path: slice(place * width, (place + 1) * width) for place, path in enumerate(paths)}
    taken = {path: used_ranks(pair, rows[path]) for path in paths if path in layers}
    left = pair.up.clone()
    for path in taken:
        left[rows[path]] = 0
    return taken, int(left.any(dim=1).sum())


def used_ranks(pair: LoraPair, rows: slice) -> LoraPair:
    """Keep some rows of B, and the ranks that they use; one at least."""
    up = pair.up[rows]
    used = up.any(dim=0)
    used[0] |= not bool(used.any())
    return pair._replace(down=pair.down[used], up=up[:, used])


def without_prefix(module: str) -> str:
    """Give a LoRA's module without what files put before the paths of a model."""
    name = module.removeprefix(PEFT_PREFIX)
    first, _, rest = name.partition(".")
    return rest if first in COMPONENTS else FLAT.sub("", name)


def place_of(module: str, layers: Layers, flat: Mapping[str, int]) -> str | None:
    """Find the projection that a LoRA's module stands for, by any of the names that files use for it."""
    name = module.removeprefix(PEFT_PREFIX)
    first, _, rest = name.partition(".")
    for path in (name, rest) if first in COMPONENTS else (name,):
        if path in layers:
            return path
    short = FLAT.sub("", name)
    if short != name and flat.get(short) == 1:
        return next(path for path in layers if path.replace(".", "_") == short)
    return None


def check_widths(path: str, pair: LoraPair, layer: PrwLinear) -> None:
    """Refuse a LoRA whose widths are not the projection's."""
    widths = (layer.in_features, layer.out_features)
    theirs = (pair.down.shape[-1], pair.up.shape[0])
    if theirs != widths or pair.down.dim() != 2 or pair.up.dim() != 2:
        raise StorageError(
            f"the LoRA of {path} is {theirs[0]} -> {theirs[1]} wide, the projection is {widths[0]} -> "
            f"{widths[1]}. Likely another base model."
        )


def refuse_more_than_lora(lora: ForeignLora, layers: Layers) -> None:
    """Refuse weights at the pool's projections that are neither A nor B, without which K and V would differ.

    Raises:
        StorageError: names them.
    """
    places: Iterable[tuple[str, str]] = ((key, key.removeprefix(PEFT_PREFIX)) for key in lora.others)
    for key, name in places:
        first, _, rest = name.partition(".")
        inside = rest if first in COMPONENTS else name
        path = next((path for path in layers if inside.startswith(f"{path}.")), None)
        if path is not None:
            raise StorageError(
                f"{lora.source} is not a plain LoRA: at {path} it also has {key}, which an expert cannot "
                "hold. Only A and B on linear projections can become an expert."
            )


def rank_pattern(report: LoraImport, layers: Layers, settings: PoolSettings) -> dict[str, int]:
    """Write down the expert's ranks where they are not the settings' own; 1 where it adds nothing."""
    ranks = {path: report.ranks.get(path, 1) for path in layers}
    if all(rank == settings.rank_at(path) for path, rank in ranks.items()):
        return {}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    return {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != usual} | {".*": usual}


def place_lora(pairs: Mapping[str, LoraPair], layers: Layers, adapter: str, index: int) -> None:
    """Copy a LoRA into an expert, scale included; where the LoRA adapts nothing, the expert gets zeros."""
    for path, layer in layers.items():
        if path in pairs:
            pair = pairs[path]
            place(layer, adapter, index, pair.down, scaled(pair.up, pair.scale / layer.scales[adapter]))
            continue
        with torch.no_grad():
            for name in pair_names(index):
                if holds(layer, name, adapter):
                    weight_of(layer, name, adapter).zero_()


def place(layer: PrwLinear, adapter: str, index: int, down: Tensor, up: Tensor) -> None:
    """Overwrite one expert at one projection by A and B of a plain LoRA, padded with zeros to its rank."""
    for letter, output_slice in layer.slices_of(adapter).items():
        names = expert_names(index, letter)
        here, there = weight_of(layer, names.down, adapter), weight_of(layer, names.up, adapter)
        down_cut, up_cut = cut(output_slice, down, up)  # [used ranks, d_in], [size of slice, used ranks]
        missing = here.shape[0] - down_cut.shape[0]
        put(here, F.pad(down_cut, (0, 0, 0, missing)))  # [used ranks, d_in] -> [rank, d_in]
        put(there, F.pad(up_cut, (0, missing)))  # [size, used ranks] -> [size, rank]


def rank_needed(layer: PrwLinear, adapter: str, down: Tensor, up: Tensor) -> int:
    """Say which rank an expert needs at this projection to hold a plain LoRA; at least one."""
    return max(1, *(cut(one, down, up)[0].shape[0] for one in layer.slices_of(adapter).values()))


def rows_left_out(layer: PrwLinear, adapter: str, up: Tensor) -> int:
    """Count the rows that a plain LoRA changes and experts do not: of a fused projection, its queries."""
    others = torch.ones(layer.out_features, dtype=torch.bool)
    for one in layer.slices_of(adapter).values():
        others[slice(None) if one is None else one.indices()] = False
    return int(up[others].any(dim=1).sum())


def cut(output_slice: OutputSlice | None, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Keep what of a LoRA acts on an output slice: its rows of B, and the ranks that those rows use."""
    if output_slice is None:
        return down, up
    rows = up[output_slice.indices()]  # [d_out, rank] -> [size of slice, rank]
    used = rows.any(dim=0)
    return down[used], rows[:, used]


def scaled(weight: Tensor, factor: float) -> Tensor:
    """Multiply in float64, so that one rounding is all that the fold costs."""
    return weight.double() * factor
