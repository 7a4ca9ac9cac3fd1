"""What PRW owes the hosts that add adapters: it says whom they switch off, and follows their dtype."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from prw.tuner.layer import PrwLinear

OTHERS = "Adapters that were active before this pool"
"""How the warning starts that a host is about to switch other adapters off."""


def warn_of_others(model: nn.Module, mine: Collection[str]) -> None:
    """Warn that transformers' and diffusers' `add_adapter` leave only the newest adapter active.

    They end in `set_adapter(new)`, so that a LoRA that was there is silent from then on; `prw.inject` and
    `prw.load` leave it active and need no warning.

    Args:
        model: The model that gets a pool.
        mine: Adapters that will be active: the new one, or those of the PeftModel that it is added to.
    """
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    others = {name for layer in layers for name in layer.active_adapters}.difference(mine)
    if others:
        names = sorted(others)
        warnings.warn(
            f"{OTHERS} ({', '.join(names)}) are switched off by transformers' and diffusers' add_adapter, "
            f"which leaves the pool alone active. Call model.set_adapter({[*names, *mine]!r}) to have all of "
            "them, or use prw.inject(model, ...), which leaves them on.",
            stacklevel=2,
        )


def cast_to_base(model: nn.Module, adapter: str) -> None:
    """Give an adapter's experts and gates the dtype of their projection, if that computes in it."""
    for layer in model.modules():
        if not isinstance(layer, PrwLinear):
            continue
        weight = next(layer.get_base_layer().parameters(), None)
        if weight is None or not weight.is_floating_point() or weight.element_size() < 2:
            continue  # quantised, or stored in fp8: no dtype to compute in
        for name in layer.adapter_layer_names:
            if adapter in getattr(layer, name):
                getattr(layer, name)[adapter].to(weight.dtype)
