"""The PEFT layer of PRW: a projection with experts that follows PEFT's naming and freezing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from prw.errors import UnsupportedError
from prw.layers import (
    WHOLE,
    Part,
    RoutedProjection,
    Site,
    add_expert_weights,
    add_router_vectors,
    container_names,
)
from prw.tuner.fusing import refuse_fusing


class PrwLinear(RoutedProjection, BaseTunerLayer):
    """A Linear (plain, quantised, or already wrapped by PEFT) with routed experts beside it."""

    other_param_names = ("sites", "parts", "strengths")

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__(base_layer, in_features, out_features)
        self.adapter_layer_names: tuple[str, ...] = ()
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self.strengths: dict[str, float] = {}

    def join(self, adapter: str, site: Site, path: str, parts: tuple[Part, ...] = WHOLE) -> None:
        """Make this projection a member of a site and give it the weights of the pool's experts."""
        self.sites[adapter] = site
        self.parts[adapter] = parts
        self.strengths[adapter] = 1.0
        site.projections[path] = self
        for index in range(len(site.pool.experts)):
            self.add_expert(adapter, index)

    def add_expert(self, adapter: str, index: int) -> None:
        """Make the weights of one more expert, and its router vectors if this keeps the router."""
        site, names = self.sites[adapter], container_names(index)
        like = next(self.get_base_layer().parameters(), None)
        for part in self.parts_of(adapter):
            add_expert_weights(self, index, adapter, site.pool.settings.rank, like, part)
        if site.router is self:
            add_router_vectors(self, index, adapter, site.pool.settings.gate_std, like)
        new = [name for name in names if name in self._modules and name not in self.adapter_layer_names]
        self.adapter_layer_names = (*self.adapter_layer_names, *new)

    def freeze_except(self, adapter: str, training: Collection[str], trainable: bool) -> None:
        """Freeze every container of an adapter but some, so that PEFT's own switching keeps it that way.

        What is frozen loses its gradient too: an optimiser that still holds it would go on moving it, by an
        old gradient or, with a zero one, by weight decay and momentum.

        Args:
            adapter: Adapter name.
            training: Names of the containers that train.
            trainable: Whether those train now; false for a pool loaded for inference.
        """
        mine = [name for name in self.adapter_layer_names if adapter in getattr(self, name)]
        frozen = tuple(name for name in mine if name not in training)
        self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter: frozen}
        for name in mine:
            trains = trainable and name in training
            for parameter in getattr(self, name)[adapter].parameters():
                parameter.requires_grad_(trains)
                parameter.grad = parameter.grad if trains else None

    def forward(self, hidden: Tensor, *args: Any, routed: bool = True, **kwargs: Any) -> Tensor:
        """Project hidden states, with the experts' part added.

        Args:
            hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
            args: Passed to the projection that was there before.
            routed: Whether the experts act; if not, this is the base and nothing is decided or recorded.
            kwargs: Passed to the projection that was there before.

        Returns:
            Of shape [..., d_out], in the base's dtype.
        """
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if not routed or self.disable_adapters:
            return output
        for adapter in self.active_adapters:
            if adapter in self.sites:
                output = self.with_experts(output, hidden, adapter, self.strengths[adapter])
        return output

    @property
    def weight(self) -> Tensor:
        """The base's weight, as PEFT gives it; not shown to diffusers' fusing, which would lose the experts.

        Raises:
            UnsupportedError: if diffusers is fusing projections.
        """
        refuse_fusing(self.sites)
        weight: Tensor = super().weight
        return weight

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of an adapter's experts; diffusers' `set_adapters` calls this."""
        if adapter in self.strengths:
            self.strengths[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters; diffusers calls this around a forward."""
        for adapter in self.active_adapters:
            if adapter in self.strengths:
                self.strengths[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`; without a scale the strength goes back to one."""
        for adapter in self.active_adapters:
            if adapter in self.strengths:
                self.strengths[adapter] = 1.0 if not scale else self.strengths[adapter] / scale

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge.

        Raises:
            UnsupportedError: always; which expert acts depends on the input.
        """
        raise UnsupportedError(
            "routed experts cannot be merged into the base weights, since which expert acts depends on the "
            "input. Use weave.export_lora(name, path) to get one expert as a plain LoRA, which can."
        )

    def unmerge(self) -> None:
        """Refuse to unmerge.

        Raises:
            UnsupportedError: always; nothing can have been merged.
        """
        raise UnsupportedError("nothing to unmerge: routed experts are never merged into the base weights.")

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Say that a pool is no LoRA."""
        return False
