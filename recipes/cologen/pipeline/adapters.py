"""LoRAs beside the pool: diffusers' own calls for LoRAs would switch the pool off, or drop it."""

from __future__ import annotations

import warnings
from typing import Any

from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

from prw.errors import UnsupportedError
from prw.tuner import PrwLinear, pool_layers
from recipes.cologen.pipeline.pool import lora_names, pool_of


class LorasBesidePool(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """A pipeline whose LoRA calls leave the pool of experts as it is."""

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Load a LoRA as diffusers does, beside the pool.

        Raises:
            UnsupportedError: Its adapter's name is the pool's.
        """
        weave = pool_of(self.transformer)
        if weave is not None and kwargs.get("adapter_name") == weave.adapter:
            raise UnsupportedError(
                f"the adapter name {weave.adapter!r} is the pool's; give the LoRA another adapter_name."
            )
        with warnings.catch_warnings():
            # peft says that a second adapter may not be meant; here it is.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            return super().load_lora_weights(*args, **kwargs)

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
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        super().set_adapters([*names, weave.adapter], [*weights, self._pool_strength()])

    def disable_lora(self) -> None:
        """Switch every LoRA off; the pool stays on."""
        super().disable_lora()
        self._switch_pool_on()

    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Take every LoRA out of transformer and text encoders; the pool stays.

        Args:
            reset_to_overwritten_params: As in diffusers, where there is no pool.

        Raises:
            UnsupportedError: Weights that a control LoRA replaced are to come back, and there is a pool.
        """
        if pool_of(self.transformer) is None:
            super().unload_lora_weights(reset_to_overwritten_params)
            return
        if reset_to_overwritten_params:
            raise UnsupportedError(
                "reset_to_overwritten_params puts whole projections back, experts and all. Eject the pool "
                "first (pipe.weave.eject()), and load it again afterwards."
            )
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            take_loras_out(getattr(self, name, None))
        norms = getattr(self.transformer, "_transformer_norm_layers", None)
        if norms:  # a control LoRA brings norms of its own; diffusers keeps those that were there
            self.transformer.load_state_dict(norms, strict=False)
            self.transformer._transformer_norm_layers = None

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """Fuse LoRAs into the base as diffusers does, where there is no pool.

        Raises:
            UnsupportedError: There is a pool, whose experts would be asked to fuse too; nothing has changed.
        """
        self._refuse_beside_pool("fuse_lora", "LoRAs draw the same unfused, a little slower")
        super().fuse_lora(*args, **kwargs)

    def set_lora_device(self, adapter_names: list[str], device: Any) -> None:
        """Move LoRAs as diffusers does, where there is no pool.

        Raises:
            UnsupportedError: There is a pool.
        """
        self._refuse_beside_pool("set_lora_device", "unload the LoRA instead: pipe.unload_lora_weights()")
        super().set_lora_device(adapter_names, device)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs as diffusers does; the pool stays.

        Raises:
            UnsupportedError: The pool is named.
        """
        weave = pool_of(self.transformer)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if weave is not None and weave.adapter in names:
            raise UnsupportedError(
                f"{weave.adapter!r} is the pool, not a LoRA. To take it out: pipe.weave.eject()."
            )
        super().delete_adapters(names)

    def _refuse_beside_pool(self, what: str, instead: str) -> None:
        if pool_of(self.transformer) is not None:
            raise UnsupportedError(
                f"{what} goes over every adapter of the transformer, the pool of experts among them, which "
                f"is no LoRA: {instead}. Or take the pool out first (pipe.weave.eject())."
            )

    def _pool_strength(self) -> float:
        weave = pool_of(self.transformer)
        if weave is None:
            return 1.0
        return next(iter(pool_layers(self.transformer, weave.adapter).values())).strengths[weave.adapter]

    def _switch_pool_on(self) -> None:
        weave = pool_of(self.transformer)
        if weave is not None:
            for layer in pool_layers(self.transformer, weave.adapter).values():
                layer.enable_adapters(True)


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
