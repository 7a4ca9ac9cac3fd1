"""Loads the pool of a folder into a model, or an earlier stage's pool into its larger one, checking first."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prw.errors import StorageError, TargetError, first_few
from prw.storage.folder import SavedPool, pool_parameters, read_folder
from prw.storage.sharded import put
from prw.tuner import (
    PEFT_PREFIX,
    Layers,
    PrwConfig,
    base_path,
    inner_model,
    model_for_pool,
    passed_over,
    passed_over_note,
    pool_layers,
    put_in,
    rename_saved,
    take_out,
)


def load_pool(model: nn.Module, path: Path, adapter: str) -> None:
    """Load a folder into a model; if anything is wrong with the folder, the model is as before."""
    place_pool(model, read_folder(path), path, adapter)


def place_pool(model: nn.Module, saved: SavedPool, path: Path, adapter: str) -> None:
    """Put what was read into a model; if it does not fit, the model is as before.

    Args:
        model: The base model, or one that has a pool whose first experts are the saved ones.
        saved: What was read.
        path: Where it was read from, for messages.
        adapter: Adapter name.
    """
    inner = inner_model(model)
    saved, embeddings = without_embeddings(inner, saved, path)
    saved = SavedPool(*rename_saved(inner, saved.config, saved.weights))
    configs = getattr(inner, "peft_config", {})
    if adapter in configs:
        fill_earlier(pool_layers(inner, adapter), adapter, configs[adapter], saved)
        name_other_embeddings(embeddings, path)
        return
    if saved.config.modules_to_save:
        raise StorageError(
            f"the pool in {path} goes with other trained modules (modules_to_save="
            f"{list(saved.config.modules_to_save)}), which prw.load would leave untrained. Load it with "
            "PeftModel.from_pretrained or the model's load_adapter; for the experts alone, set "
            "modules_to_save to null in adapter_config.json and remove those modules' weights."
        )
    saved.config.inference_mode = False
    uncovered = passed_over(inner, saved.config)
    if uncovered:
        raise StorageError(
            f"the pool in {path} does not cover this model: {passed_over_note(uncovered, saved.config)}. "
            "Likely it is of a smaller base model; to load it for the others alone, set resolved_from to "
            "null in adapter_config.json."
        )
    try:
        put_in(model_for_pool(model), saved.config, adapter)
    except TargetError as error:
        raise StorageError(f"the pool in {path} is of another model: {error}") from error
    try:
        fill(pool_layers(inner, adapter), adapter, saved.weights)
    except StorageError:
        take_out(inner, adapter)
        raise
    for parameter, weight in embeddings.values():
        put(parameter, weight)


def fill_earlier(layers: Layers, adapter: str, config: PrwConfig, saved: SavedPool) -> None:
    """Load an earlier stage's pool into a larger one."""
    theirs, ours = saved.config.experts, config.experts
    if theirs != ours[: len(theirs)] or saved.config.settings() != config.settings():
        raise StorageError(
            f"the saved pool ({', '.join(theirs)}; {saved.config.settings()}) is no earlier stage of the "
            f"model's pool ({', '.join(ours)}; {config.settings()}). Eject the pool first, or load into a "
            "fresh model."
        )
    fill(layers, adapter, saved.weights, experts=len(theirs))


def fill(layers: Layers, adapter: str, weights: Mapping[str, Tensor], experts: int | None = None) -> None:
    """Copy weights into a pool, all of them or none.

    Args:
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        weights: Weights as in a pool's file.
        experts: How many of the pool's first experts the weights are of, at every site; None means all.
    """
    parameters = pool_parameters(layers, adapter, experts)
    unknown, missing = sorted(set(weights) - set(parameters)), sorted(set(parameters) - set(weights))
    if unknown or missing:
        raise StorageError(
            f"the saved pool does not fit this model: {len(missing)} weights are missing "
            f"({first_few(missing)}), {len(unknown)} have no place ({first_few(unknown)}). Likely another "
            "base model, or other targets."
        )
    odd = [name for name, weight in weights.items() if weight.shape != parameters[name].shape]
    if odd:
        name = odd[0]
        raise StorageError(
            f"the saved pool does not fit this model: {name} has shape {tuple(weights[name].shape)}, the "
            f"model needs {tuple(parameters[name].shape)} ({len(odd)} such weights). Likely another base "
            "model."
        )
    for name, weight in weights.items():
        put(parameters[name], weight)


# ------------------------------------------------------------------------- embeddings that PEFT saved with it


def without_embeddings(
    model: nn.Module, saved: SavedPool, path: Path
) -> tuple[SavedPool, dict[str, tuple[nn.Parameter, Tensor]]]:
    """Separate a pool from embeddings of the base, which PEFT saves with it once they were resized.

    Any other weight of the base stays with the pool, which refuses it.

    Returns:
        The pool alone; and by its name in the model, each of the embeddings' parameters with what was saved.
    """
    parameters = {} if saved.config.modules_to_save else embeddings_of(model)
    names = {base_path(name.removeprefix(PEFT_PREFIX)): name for name in saved.weights}
    found = {
        short: (parameters[short], saved.weights[name])
        for short, name in names.items()
        if short in parameters
    }
    for name, (parameter, weight) in found.items():
        rows = tuple(weight.shape)
        if rows != tuple(parameter.shape):
            raise StorageError(
                f"the pool in {path} was saved with resized embeddings: {name} is {rows} there and "
                f"{tuple(parameter.shape)} in this model. Call model.resize_token_embeddings({rows[0]}) "
                "before loading it."
            )
    own = {name: saved.weights[name] for short, name in names.items() if short not in found}
    return saved._replace(weights=own), found


def embeddings_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters of a transformers model's embeddings, input and output; tied ones by both names."""
    layers = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):  # a model without them, or that does not say
            layers.append(getattr(model, name)())
    wanted = {id(weight) for layer in layers if isinstance(layer, nn.Module) for weight in layer.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {base_path(name): parameter for name, parameter in named if id(parameter) in wanted}


def name_other_embeddings(embeddings: Mapping[str, tuple[nn.Parameter, Tensor]], path: Path) -> None:
    """Warn of saved embeddings that are not those of a model with a larger pool, which keeps its own."""
    other = [name for name, (parameter, weight) in embeddings.items() if not same(parameter, weight)]
    if other:
        warnings.warn(
            f"the embeddings in {path} ({', '.join(other)}) differ from this model's, which keeps its own "
            "since it has a larger pool. To have the saved stage's model, load the folder into a fresh base.",
            stacklevel=5,
        )


def same(parameter: nn.Parameter, weight: Tensor) -> bool:
    """Say whether a parameter holds what was saved; one on the meta device never does."""
    here = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
    return not here.is_meta and torch.equal(here, weight.to(here.device, here.dtype))
