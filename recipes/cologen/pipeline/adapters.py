"""LoRAs beside the pool: diffusers' own calls for LoRAs would switch the pool off, or drop it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft.tuners.tuners_utils import BaseTunerLayer

from prw.errors import UnsupportedError
from prw.tuner import PrwLinear, pool_layers
from recipes.cologen.pipeline.pool import lora_names, pool_of


class LorasBesidePool(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """A pipeline whose LoRA calls leave the pool of experts as it is."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA as diffusers does, beside the pool and the LoRAs that are there.

        Args:
            pretrained_model_name_or_path_or_dict: A repository on the hub, a folder, a file or a state dict.
            adapter_name: Name of the LoRA; None takes `default_0`, `default_1`, ...
            hotswap: Whether the weights replace those of the LoRA that has the name.
            **kwargs: As in diffusers.

        Raises:
            UnsupportedError: Its adapter's name is the pool's.
        """
        weave = pool_of(self.transformer)
        if weave is not None and adapter_name == weave.adapter:
            raise UnsupportedError(
                f"the adapter name {weave.adapter!r} is the pool's; give the LoRA another adapter_name."
            )
        if weave is not None and adapter_name is None:
            adapter_name = free_name(self.transformer.peft_config)
        with warnings.catch_warnings():
            # peft says that a second adapter may not be meant; here it is.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            super().load_lora_weights(
                pretrained_model_name_or_path_or_dict, adapter_name=adapter_name, hotswap=hotswap, **kwargs
            )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Activate LoRAs as diffusers does; the pool stays active, whether it is named or not.

        Args:
            adapter_names: Names of LoRAs, and of the pool if its strength is to be set.
            adapter_weights: A weight for all, or one for each name.
        """
        weave = pool_of(self.transformer)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if weave is None or weave.adapter in names:
            super().set_adapters(names, adapter_weights)
            return
        super().set_adapters(names, adapter_weights)
        for layer in self.transformer.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter([*names, weave.adapter])

    def disable_lora(self) -> None:
        """Switch every LoRA off; the pool stays on."""
        super().disable_lora()
        self._switch_pool_on()

    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Take every LoRA out of transformer and text encoders; the pool stays.

        Args:
            reset_to_overwritten_params: As in `FluxPipeline`, where there is no pool.

        Raises:
            UnsupportedError: Weights that a control LoRA replaced are to come back, and there is a pool.
        """
        asked = {"reset_to_overwritten_params": True} if reset_to_overwritten_params else {}
        if pool_of(self.transformer) is None:
            super().unload_lora_weights(**asked)  # FLUX.2 has no such argument
            return
        if asked:
            raise UnsupportedError(
                "reset_to_overwritten_params puts whole projections back, experts and all. Eject the pool "
                "first (pipe.weave.eject()), and load it again afterwards."
            )
        for name in self._lora_loadable_modules:
            take_loras_out(getattr(self, name, None))
        norms = getattr(self.transformer, "_transformer_norm_layers", None)
        if norms:  # a control LoRA brings norms of its own; diffusers keeps those that were there
            self.transformer.load_state_dict(norms, strict=False)
            self.transformer._transformer_norm_layers = None

    def fuse_lora(
        self,
        components: Sequence[str] = ("transformer",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fuse LoRAs into the base as diffusers does; the pool stays beside it, unfused.

        Args:
            components: As in diffusers.
            lora_scale: As in diffusers; the pool keeps its strength.
            safe_fusing: As in diffusers.
            adapter_names: Names of LoRAs; None means all that are active.
            **kwargs: As in diffusers.

        Raises:
            UnsupportedError: The pool is named; nothing has changed.
        """
        self._refuse_pool(
            adapter_names or (), "cannot be fused, since which expert acts depends on the input"
        )
        if adapter_names is None and (weave := pool_of(self.transformer)) is not None:
            parts = [getattr(self, name, None) for name in components]
            adapter_names = [name for name in active_adapters(parts) if name != weave.adapter]
        super().fuse_lora(
            components=list(components),
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def enable_lora_hotswap(self, **kwargs: Any) -> None:
        """Prepare for LoRAs that replace each other in place, as diffusers does before the first LoRA.

        Args:
            **kwargs: As in diffusers.
        """
        if pool_of(self.transformer) is not None and not lora_names(self.transformer):
            kwargs = {"check_compiled": "ignore"} | kwargs  # else the pool would count as the first LoRA
        super().enable_lora_hotswap(**kwargs)

    def set_lora_device(self, adapter_names: list[str], device: Any) -> None:
        """Move LoRAs as diffusers does; the pool stays where the transformer is.

        Raises:
            UnsupportedError: The pool is named.
        """
        self._refuse_pool(adapter_names, "stays on the device of the transformer")
        super().set_lora_device(adapter_names, device)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs as diffusers does; the pool stays.

        Raises:
            UnsupportedError: The pool is named.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._refuse_pool(names, "is taken out by pipe.weave.eject()")
        super().delete_adapters(names)

    def get_active_adapters(self) -> list[str]:
        """List the LoRAs that are active, as the other calls take them; the pool is not among them.

        `get_list_adapters` lists what `set_adapters` takes, so there the pool is.
        """
        if pool_of(self.transformer) is None:
            return list(super().get_active_adapters())
        parts = [getattr(self, name, None) for name in self._lora_loadable_modules]
        loras = {name for part in parts for name in lora_names(part)}
        return [name for name in active_adapters(parts) if name in loras]

    def _refuse_pool(self, names: Collection[str], instead: str) -> None:
        weave = pool_of(self.transformer)
        if weave is not None and weave.adapter in names:
            raise UnsupportedError(f"{weave.adapter!r} is the pool, not a LoRA: it {instead}.")

    def _switch_pool_on(self) -> None:
        weave = pool_of(self.transformer)
        if weave is not None:
            for layer in pool_layers(self.transformer, weave.adapter).values():
                layer.enable_adapters(True)


def free_name(taken: Collection[str]) -> str:
    """Name a LoRA as diffusers does, which may give one name twice to LoRAs that act on other layers."""
    return next(name for count in range(len(taken) + 1) if (name := f"default_{count}") not in taken)


def active_adapters(models: Iterable[Any]) -> list[str]:
    """List the adapters that act in some models, each once."""
    layers = [
        layer
        for model in models
        if model is not None
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


def take_loras_out(model: Any) -> None:
    """Put back what every LoRA of a model was wrapped around; a pool stays, around or inside it."""
    names = () if model is None else lora_names(model)
    if not names:
        return
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            inner: Any = child
            while isinstance(inner, BaseTunerLayer) and not isinstance(inner, PrwLinear):
                inner = getattr(inner, "base_layer")  # noqa: B009  # peft does not declare it
            if inner is not child:
                setattr(parent, child_name, inner)
    for name in names:
        del model.peft_config[name]
    if not model.peft_config:
        del model.peft_config
        model._hf_peft_config_loaded = False
    _maybe_remove_and_reapply_group_offloading(model)
