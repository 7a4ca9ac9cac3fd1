"""Loads and saves the pools of diffusers pipelines, which `load_lora_weights` and `save_lora_weights` cannot.

Those build a LoRA's configuration whatever the file says. Nothing here imports diffusers: whoever has a
pipeline has imported it already, and `import prw` stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prw.errors import PoolError, StorageError
from prw.storage import SavedPool, load_pool, place_pool, pool_config
from prw.storage.folder import read_safetensors
from prw.storage.lora_files import DIFFUSERS_WEIGHTS_NAME, diffusers_config
from prw.tuner import PEFT_PREFIX, adapters_with_pools
from prw.weave import Weave

DENOISERS = ("transformer", "unet", "prior")
"""Names of the component that denoises, in pipelines."""


def load_pipeline(
    pipe: Any, path: str | Path, *, component: str | None = None, adapter: str = "default"
) -> Weave:
    """Load a pool into the denoiser of a diffusers pipeline; its LoRAs stay as they are.

    Args:
        pipe: The pipeline.
        path: Folder written by `prw.save_pipeline`, by `save_pretrained` of a weave or of PEFT, or by
            `save_lora_adapter` of a diffusers model; or the file that the last of these wrote.
        component: Which model of the pipeline; None means its denoiser: transformer, unet or prior.
        adapter: Name of the PEFT adapter.

    Returns:
        The handle of the pool.

    Raises:
        PoolError: if the pipeline has no such model, or several that could be meant.
        StorageError: if the folder is missing, damaged, foreign or does not fit; the model is untouched then.
        UnsupportedError: if the model's weights are offloaded one by one; says what to do.
    """
    name, model = component_of(pipe, component)
    folder = Path(path)
    file = folder if folder.is_file() else folder / DIFFUSERS_WEIGHTS_NAME
    if file.is_file():
        saved = read_saved_by_diffusers(file, name)
        place_pool(model, saved, folder, adapter)
    else:
        load_pool(model, folder, adapter)
    return Weave(model, adapter)


def save_pipeline(
    pipe: Any, path: str | Path, *, component: str | None = None, adapter: str = "default"
) -> None:
    """Save the pool of a diffusers pipeline's denoiser, as `Weave.save_pretrained` does.

    Args:
        pipe: The pipeline.
        path: Folder to write; `load_pipeline`, `prw.load` and PEFT read it.
        component: Which model of the pipeline; None means its denoiser: transformer, unet or prior.
        adapter: Name of the PEFT adapter.

    Raises:
        PoolError: if the pipeline has no such model, or it has no pool.
        StorageError: if `path` is a file.
    """
    name, model = component_of(pipe, component)
    refuse_other_component(pipe, name, adapter)
    weave = Weave(model, adapter)
    if weave.config.base_model_name_or_path is None:  # diffusers' add_adapter leaves it open
        weave.config.base_model_name_or_path = getattr(pipe, "name_or_path", None) or None
    weave.save_pretrained(path)


def component_of(pipe: Any, component: str | None) -> tuple[str, nn.Module]:
    """Find a model of a pipeline."""
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, dict):
        raise PoolError(
            f"expected a diffusers pipeline, got a {type(pipe).__name__}. For a model by itself use "
            "prw.load(model, path) and weave.save_pretrained(path)."
        )
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    like = [name for name in models if name.rstrip("_0123456789") in DENOISERS]
    wanted = like if component is None else [component]
    if len(wanted) != 1 or wanted[0] not in models:
        raise PoolError(
            f"{type(pipe).__name__} has {'no model' if not wanted else 'not one model'} "
            f"{component or 'that denoises'}; its models are {', '.join(models) or 'none'}. Choose one with "
            "component=..."
        )
    return wanted[0], models[wanted[0]]


def refuse_other_component(pipe: Any, component: str, adapter: str) -> None:
    """Refuse a model of a pipeline that has no pool where another model of it has one."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    pools = {name: found for name, part in models.items() if (found := adapters_with_pools(part))}
    if component in pools or not pools:
        return
    places = "; ".join(f"{name} under adapter {', '.join(map(repr, found))}" for name, found in pools.items())
    other = next(iter(pools))
    raise PoolError(
        f"the {component} of {type(pipe).__name__} has no pool of experts, asked for under adapter "
        f"{adapter!r}; these models have one: {places}. Pass component={other!r}, "
        f"adapter={pools[other][0]!r}."
    )


def read_saved_by_diffusers(file: Path, component: str) -> SavedPool:
    """Read the file that diffusers' `save_lora_adapter` or `save_lora_weights` wrote of a pool.

    Args:
        file: The file.
        component: Name of the pipeline's model, which diffusers may put before every name.
    """
    weights, metadata = read_safetensors(file)
    values = diffusers_config(metadata, file)
    if not any(".prw_" in key for key in weights):
        raise StorageError(
            f"{file} holds no pool but {len(weights)} weights of another adapter. Load a LoRA with "
            "pipe.load_lora_weights(path), or as an expert with weave.import_lora(path, name=...)."
        )
    if not values:
        raise StorageError(
            f"{file} holds the weights of a pool without its settings, which save_lora_weights of diffusers "
            "writes only if they are given. Save the pool with prw.save_pipeline(pipe, path)."
        )
    prefix = f"{component}."
    config = pool_config({key.removeprefix(prefix): value for key, value in values.items()}, file)
    return SavedPool(config, {PEFT_PREFIX + key.removeprefix(prefix): weights[key] for key in weights})
