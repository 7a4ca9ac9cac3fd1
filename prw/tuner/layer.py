"""The PEFT layer of PRW: a projection with experts that follows PEFT's naming and freezing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prw.errors import UnsupportedError
from prw.kernels import OutputSlice
from prw.layers import (
    WHOLE,
    RoutedLinear,
    Site,
    add_expert_weights,
    add_router_vectors,
    container_names,
)
from prw.tuner.host_calls import (
    DEPTH_OF_STATE,
    MEASURING,
    MOVING,
    NAMING,
    SCALING,
    asked_by,
    free_name,
    refuse_fusing,
    refuse_saving,
)


class PrwLinear(RoutedLinear, BaseTunerLayer):
    """A Linear, plain or quantised, with routed experts beside it."""

    other_param_names = ("sites", "slices", "strengths", "scales")

    def __init__(self, base_layer: nn.Module, in_features: int, out_features: int) -> None:
        """Wrap a projection; it has no experts yet."""
        super().__init__(base_layer, in_features, out_features)
        self.training = self.get_base_layer().training  # PEFT creates a LoRA in between in training mode
        self.adapter_layer_names: tuple[str, ...] = ()
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self.strengths: dict[str, float] = {}
        self.cast_input_dtype_enabled = True  # diffusers' layerwise casting sets it on every PEFT layer

    @property
    def r(self) -> dict[str, int]:
        """Rank of new experts by adapter; diffusers counts them to name a LoRA, and gets a free count."""
        if naming := asked_by(NAMING):
            return dict.fromkeys(map(str, free_name(getattr(naming.f_locals["model"], "peft_config", {}))), 0)
        return {
            adapter: site.pool.settings.rank_at(site.path_of(self)) for adapter, site in self.sites.items()
        }

    def acts(self, adapter: str) -> bool:
        """Return whether an adapter's experts are switched on here, by PEFT's own state."""
        return adapter in self.sites and adapter in self.active_adapters and not self.disable_adapters

    @property
    def lora_A(self) -> dict[str, nn.Module]:  # noqa: N802  # PEFT's name
        """No weights: diffusers asks every layer for its LoRA's to move them, and a pool is not a LoRA.

        Raises:
            UnsupportedError: if the pool itself is to be moved as a LoRA.
        """
        moving = asked_by(MOVING)
        if moving is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'lora_A'")
        named = sorted(set(moving.f_locals["adapter_names"]) & set(self.sites))
        if named:
            raise UnsupportedError(
                f"set_lora_device moves LoRAs, and {named[0]!r} is a pool of experts. Move it with the "
                "model, or take it out: weave.save_pretrained(path), weave.eject()."
            )
        return {}

    def join(
        self, adapter: str, site: Site, path: str, slices: Mapping[str, OutputSlice | None] = WHOLE
    ) -> None:
        """Add this projection to a site, with weights for each of the pool's experts."""
        self.sites[adapter] = site
        self.slices[adapter] = slices
        self.strengths[adapter] = 1.0
        self.scales[adapter] = site.pool.settings.scale_at(path)
        site.add(path, self)
        for index in range(len(site.pool.experts)):
            self.add_expert(adapter, index)

    def add_expert(self, adapter: str, index: int) -> None:
        """Add the weights of one more expert, and its router vectors if this keeps the site's router.

        Raises:
            UnsupportedError: if the projection is split over processes or offloaded already.
        """
        site, names = self.sites[adapter], container_names(index)
        like = next(self.get_base_layer().parameters(), None)
        refuse_elsewhere(like, offloaded=hasattr(self.get_base_layer(), "_hf_hook"))
        rank = site.pool.rank_at(index, site.path_of(self))
        for letter, output_slice in self.slices_of(adapter).items():
            add_expert_weights(self, index, adapter, rank, like, letter, output_slice)
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
            part = getattr(self, name)[adapter]
            part.frozen = name in frozen
            for parameter in part.parameters():
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
                output = self.add_experts(output, hidden, adapter, self.strengths[adapter])
        return output

    @property
    def weight(self) -> Tensor:
        """The base's weight, as PEFT gives it; not shown to diffusers' fusing, which would lose the experts.

        Raises:
            UnsupportedError: if diffusers is fusing projections.
        """
        refuse_fusing(self.sites)
        self.note_weight_read()
        weight: Tensor = super().weight
        return weight

    def note_weight_read(self) -> None:
        """Notify the sites that the weight is read: the reader may compute with it and bypass the experts."""
        if not torch.compiler.is_compiling():
            for site in self.sites.values():
                site.note_weight_read(self)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of an adapter's experts; diffusers' `set_adapters` calls this."""
        if adapter in self.strengths:
            self.strengths[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters; diffusers calls this around a forward.

        It calls this too before it fuses LoRAs, and never takes that back; a pool is not fused and keeps its
        strength.
        """
        if asked_by(SCALING):
            return
        for adapter in self.active_adapters:
            if adapter in self.strengths:
                self.strengths[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`; without a scale the strength goes back to one."""
        for adapter in self.active_adapters:
            if adapter in self.strengths:
                self.strengths[adapter] = 1.0 if not scale else self.strengths[adapter] / scale

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave the pool beside what is merged, and refuse to merge the pool itself.

        Args:
            safe_merge: Of no effect, as nothing is merged.
            adapter_names: What is to be merged in the model; None means all that is active.

        Raises:
            UnsupportedError: if a pool is among them; which expert acts depends on the input.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        if not set(names) & set(self.sites):
            return
        if asked_by(SCALING):
            raise UnsupportedError(
                "fuse_lora() fuses all that is active, and a pool of experts cannot be. Name the LoRAs: "
                "pipe.fuse_lora(adapter_names=[...]); what was fused so far is undone by pipe.unfuse_lora()."
            )
        raise UnsupportedError(
            "routed experts cannot be merged into the base weights and taken out again, since which expert "
            "acts depends on the input. A pool whose weights are constant, as one of a single expert, can be "
            "merged for good: model.merge_and_unload() of a PEFT model, else prw.Weave(model).merge()."
        )

    def unmerge(self) -> None:
        """Do nothing: a pool is never merged, while LoRAs beside it may be."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write the layer's state as any module, with one more name for the loader of FLUX.1 LoRAs.

        That one looks for the weight of what a LoRA acts on as `<path>.weight` or `<path>.base_layer.weight`,
        where there are two `base_layer` if the pool lies inside another LoRA.

        Raises:
            UnsupportedError: if diffusers saves the model.
        """
        refuse_saving(self.sites)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if prefix.endswith(".base_layer.") and asked_by(MEASURING, DEPTH_OF_STATE):
            destination[f"{prefix}weight"] = self.weight

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False: a pool is not a LoRA."""
        return False


Layers = Mapping[str, PrwLinear]
"""The projections of a pool, by their path at injection."""


def refuse_elsewhere(weight: Tensor | None, offloaded: bool) -> None:
    """Refuse to put experts beside a weight that is split or offloaded: theirs would be neither.

    Args:
        weight: A weight of the projection.
        offloaded: Whether accelerate fetches the projection's weights for each forward.

    Raises:
        UnsupportedError: says what comes first.
    """
    if isinstance(weight, DTensor):
        raise UnsupportedError(
            f"the projection is split over {weight.device_mesh.size()} processes (FSDP2 or tensor parallel), "
            "and a new expert would be whole on each and trained apart. Inject the pool and add its experts "
            "first, then call fully_shard; to grow later, save the pool and load it into an unsplit model."
        )
    if weight is not None and weight.is_meta and offloaded:
        raise UnsupportedError(
            "accelerate has offloaded the projection's weights, so there is no device to put an expert on. "
            "Take the offloading off first: pipe.remove_all_hooks(), or "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True); then add the pool or expert, and "
            "switch it on again."
        )


def project(module: nn.Module, hidden: Tensor, routed: bool = True) -> Tensor:
    """Call a key or value projection, saying whether its experts act on these tokens.

    Works for a plain projection, a PRW layer, and a PEFT LoRA around or inside a PRW layer.

    Args:
        module: The projection.
        hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
        routed: False gives what the projection gives without experts; nothing is decided or recorded.

    Returns:
        Of shape [..., d_out].
    """
    has_experts = any(isinstance(layer, PrwLinear) for layer in wrapped(module))
    output: Tensor = module(hidden, routed=routed) if has_experts else module(hidden)
    return output


def wrapped(module: nn.Module) -> list[nn.Module]:
    """List a module and what it wraps as `base_layer`, outermost first."""
    chain = [module]
    while "base_layer" in chain[-1]._modules:
        inner = chain[-1]._modules["base_layer"]
        if inner is None:
            break
        chain.append(inner)
    return chain
