"""Puts the pool of a folder into a model, or an earlier stage's pool into its larger one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prw.errors import StorageError, TargetError
from prw.storage.folder import SavedPool, read_folder
from prw.storage.sharded import put
from prw.storage.state import fill
from prw.tuner import (
    PEFT_PREFIX,
    Layers,
    PrwConfig,
    base_path,
    current_paths,
    inner_model,
    model_for_pool,
    passed_over,
    passed_over_note,
    paths_in,
    pool_layers,
    projections_of,
    put_in,
    take_out,
    with_current_names,
    with_current_paths,
)


def load_pool(model: nn.Module, path: Path, adapter: str) -> None:
    """Load a folder into a model; whatever is wrong with the folder, the model is as before.

    Raises:
        StorageError: if the folder is missing, damaged, foreign or does not fit.
    """
    place_pool(model, read_folder(path), path, adapter)


def place_pool(model: nn.Module, saved: SavedPool, path: Path, adapter: str) -> None:
    """Put what was read into a model; if it does not fit, the model is as before.

    Args:
        model: The base model, or one that has a pool whose first experts are the saved ones.
        saved: What was read.
        path: Where it was read from, for messages.
        adapter: Adapter name.

    Raises:
        StorageError: if it does not fit.
    """
    inner = inner_model(model)
    saved, embeddings = without_embeddings(inner, saved, path)
    saved = up_to_date(saved, inner)
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
    left = passed_over(inner, saved.config)
    if left:
        raise StorageError(
            f"the pool in {path} does not cover this model: {passed_over_note(left, saved.config)}. Likely "
            "it is of a smaller base model; to load it for the others alone, set resolved_from to null in "
            "adapter_config.json."
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


def without_embeddings(
    model: nn.Module, saved: SavedPool, path: Path
) -> tuple[SavedPool, dict[str, tuple[nn.Parameter, Tensor]]]:
    """Part a folder from embeddings of the base, which PEFT saves with it once they were resized.

    Any other weight of the base stays with the pool, which has no place for it.

    Returns:
        The pool alone; and by its name in the model, each of the embeddings' parameters with what was saved.

    Raises:
        StorageError: if the model's is of another size.
    """
    parameters = {} if saved.config.modules_to_save else embeddings_of(model)
    plain = {base_path(name.removeprefix(PEFT_PREFIX)): name for name in saved.weights}
    found = {
        short: (parameters[short], saved.weights[plain[short]]) for short in plain if short in parameters
    }
    for name, (parameter, weight) in found.items():
        rows = tuple(weight.shape)
        if rows != tuple(parameter.shape):
            raise StorageError(
                f"the pool in {path} was saved with resized embeddings: {name} is {rows} there and "
                f"{tuple(parameter.shape)} in this model. Call model.resize_token_embeddings({rows[0]}) "
                "before loading it."
            )
    theirs = {plain[name] for name in found}
    pool = saved._replace(weights={name: w for name, w in saved.weights.items() if name not in theirs})
    return pool, found


def embeddings_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters of a transformers model's embeddings, going in and out; tied ones by both names."""
    layers = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):  # a model without them, or that cannot tell
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
    """Tell whether a parameter holds what was saved; of one that is not loaded that is not known."""
    here = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
    return not here.is_meta and torch.equal(here, weight.to(here.device, here.dtype))


def up_to_date(saved: SavedPool, model: nn.Module) -> SavedPool:
    """Let names and targets of a saved pool be this model's, where its projections have moved since.

    Earlier versions put experts on paths that merely end like a target, and passed over layers_to_transform,
    so the targets name every projection that the weights are of.
    """
    paths, targets = paths_in(saved.weights), saved.config.target_modules
    if isinstance(targets, list | tuple | set):
        saved.config.target_modules = [*targets, *sorted(paths.difference(targets))]
    renamed = current_paths(model, paths, projections_of(model).keys())
    return SavedPool(with_current_paths(saved.config, renamed), with_current_names(saved.weights, renamed))


def fill_earlier(layers: Layers, adapter: str, config: PrwConfig, saved: SavedPool) -> None:
    """Put an earlier stage's pool into a larger one.

    Raises:
        StorageError: if its experts are not the pool's first ones or settings differ; nothing changed then.
    """
    theirs, ours = saved.config.experts, config.experts
    if theirs != ours[: len(theirs)] or saved.config.settings() != config.settings():
        raise StorageError(
            f"the saved pool ({', '.join(theirs)}; {saved.config.settings()}) is no earlier stage of the "
            f"model's pool ({', '.join(ours)}; {config.settings()}). Eject the pool first, or load into a "
            "fresh model."
        )
    fill(layers, adapter, saved.weights, experts=len(theirs))
