"""Where expert weights live: one module per expert and output slice, in containers keyed by adapter name.

`prw_A0`, `prw_A1`, ... hold A; `prw_B*` hold B; `prw_gate*` and `prw_noise*` hold a site's router vectors.
A projection that is keys and values at once has a pair for each: `prw_Ak0`, `prw_Bk0`, `prw_Av0`, `prw_Bv0`.
Each expert has Parameters of its own instead of a slice of one tensor: the optimiser never sees a frozen
expert (weight decay would move a slice whose gradient is masked), and the checkpoint of an earlier stage is a
subset of a later one's. They are not `nn.Linear`: hosts that quantise, cast (fp8), wrap or offload every
Linear of a model would do so to the experts, whose weights are read and multiplied together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prw.kernels import OutputSlice

ALIGNMENT = 64
"""Bytes; torch allocates CPU memory at multiples of it."""
DOWN, UP, GATE, NOISE = "prw_A", "prw_B", "prw_gate", "prw_noise"


class ExpertNames(NamedTuple):
    """Attribute names of one expert's containers."""

    down: str
    up: str
    gate: str
    noise: str


class ExpertWeight(nn.Module):
    """One weight matrix of one expert; while it is frozen, so is every parameter that takes its place.

    Loaders put new parameters into a model, transformers' `load_adapter` such that train, after PEFT has
    frozen the old ones.

    Attributes:
        weight: Of shape [out_features, in_features].
        frozen: Whether the weight is frozen with its expert.
        split: Whether it was ever split over processes; FSDP2 then fills it without torch counting changes.
    """

    frozen = False
    split = False

    def __init__(
        self, in_features: int, out_features: int, device: torch.device | None, dtype: torch.dtype
    ) -> None:
        """Allocate the weight; its values are not set."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a new weight train only if the old one did."""
        if isinstance(value, nn.Parameter) and self.frozen:
            value.requires_grad_(False)
        if isinstance(value, DTensor):
            self.__dict__["split"] = True
        elif isinstance(value, nn.Parameter) and not aligned(value):
            value.data = value.data.clone()
        super().__setattr__(name, value)

    def forward(self) -> Tensor:
        """Return the weight; hooks that fetch an offloaded weight for a forward act here."""
        return self.weight

    def extra_repr(self) -> str:
        """Show the widths when the model is printed."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"


LETTERS = ("", "k", "v")
"""What may follow `prw_A` and `prw_B`: nothing, or the output slice of a fused projection."""


def expert_names(index: int, letter: str = "") -> ExpertNames:
    """Name the containers of the expert at a position, for the output slice of that letter."""
    return ExpertNames(f"{DOWN}{letter}{index}", f"{UP}{letter}{index}", f"{GATE}{index}", f"{NOISE}{index}")


def pair_names(index: int) -> tuple[str, ...]:
    """Name every container that can hold an A or a B of the expert at a position."""
    return tuple(name for letter in LETTERS for name in expert_names(index, letter)[:2])


def container_names(index: int) -> tuple[str, ...]:
    """Name every container that the expert at a position can have."""
    return (*pair_names(index), *expert_names(index)[2:])


def container(layer: nn.Module, name: str) -> nn.ModuleDict:
    """Return the layer's container of that name, creating it where it is missing."""
    if name not in layer._modules:
        layer.add_module(name, nn.ModuleDict())
    found = layer.get_submodule(name)
    if not isinstance(found, nn.ModuleDict):
        raise TypeError(
            f"{name} of {type(layer).__name__} is a {type(found).__name__}, not a container of experts"
        )
    return found


def add_expert_weights(
    layer: nn.Module,
    index: int,
    adapter: str,
    rank: int,
    like: Tensor | None,
    letter: str = "",
    output_slice: OutputSlice | None = None,
) -> None:
    """Add A and B of a new expert to a projection: A as torch initialises a Linear, B zero: nothing changes.

    Args:
        layer: A projection with `in_features` and `out_features`.
        index: The expert's position.
        adapter: Adapter name.
        rank: LoRA rank.
        like: A tensor whose device is taken, and for the first expert whose dtype if that is float64.
        letter: Which output slice they are of: "k" or "v" in a fused projection, else "".
        output_slice: The columns that they add to; None means all.
    """
    names = expert_names(index, letter)
    dtype = dtype_of_pool(layer, DOWN + letter, adapter, like)
    out_features = int(layer.out_features) if output_slice is None else output_slice.size  # type: ignore[arg-type]
    down = new_weight(int(layer.in_features), rank, like, dtype)  # type: ignore[arg-type]
    up = new_weight(rank, out_features, like, dtype)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    container(layer, names.down)[adapter] = down
    container(layer, names.up)[adapter] = up


def add_router_vectors(
    layer: nn.Module, index: int, adapter: str, gate_std: float, like: Tensor | None
) -> None:
    """Add the router vectors of a new expert to the projection that keeps its site's router.

    The gate is tiny and random, so that ties do not all fall to the first expert; the noise vector is zero,
    which makes the noise's standard deviation softplus(0) = 0.693.
    """
    names = expert_names(index)
    dtype = dtype_of_pool(layer, GATE, adapter, like)
    gate = new_weight(int(layer.in_features), 1, like, dtype)  # type: ignore[arg-type]
    noise = new_weight(int(layer.in_features), 1, like, dtype)  # type: ignore[arg-type]
    nn.init.normal_(gate.weight, std=gate_std)
    nn.init.zeros_(noise.weight)
    container(layer, names.gate)[adapter] = gate
    container(layer, names.noise)[adapter] = noise


def dtype_of_pool(layer: nn.Module, kind: str, adapter: str, like: Tensor | None) -> torch.dtype:
    """Return the dtype for a new expert: that of the first one, which model.to(torch.bfloat16) may have cast.

    The first is float32 whatever 16-bit or quantised dtype the base has, unless the base is float64.
    """
    first = layer._modules.get(f"{kind}0")
    if isinstance(first, nn.ModuleDict) and adapter in first:
        dtype: torch.dtype = weight_of(layer, f"{kind}0", adapter).dtype
        return dtype
    return torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32


def new_weight(in_features: int, out_features: int, like: Tensor | None, dtype: torch.dtype) -> ExpertWeight:
    """Make an uninitialised weight on the device of a tensor."""
    return ExpertWeight(in_features, out_features, None if like is None else like.device, dtype)


def weights_of(layer: nn.Module, kind: str, adapter: str, experts: int) -> list[Tensor]:
    """Read one weight of each of the oldest experts.

    Args:
        layer: The projection.
        kind: Which weight: DOWN or UP with a slice's letter, GATE or NOISE.
        adapter: Adapter name.
        experts: How many experts.
    """
    containers = layer._modules
    holders: list[Any] = [containers[f"{kind}{index}"]._modules[adapter] for index in range(experts)]  # type: ignore[union-attr]
    return [holder.weight if unhooked(holder) else holder() for holder in holders]


def unhooked(holder: nn.Module) -> bool:
    """Return whether calling a holder gives its weight and does nothing more; a call costs more."""
    return not holder._forward_pre_hooks and not holder._forward_hooks and "forward" not in holder.__dict__


def weight_of(layer: nn.Module, name: str, adapter: str) -> Tensor:
    """Read an adapter's weight from a container; looked up anew each time, as casts replace it."""
    weight: Tensor = getattr(layer, name)[adapter]()
    return weight


def aligned(weight: Tensor) -> bool:
    """Return whether a weight lies where torch itself would put it.

    Of a file that a loader has mapped into memory it may not, and a host's matrix products round by where
    their operands lie: the same pool would give other bits than before it was saved.
    """
    here = weight.device.type == "cpu" and type(weight.data) is Tensor
    return not here or weight.data_ptr() % ALIGNMENT == 0


def is_split(layer: nn.Module, adapter: str) -> bool:
    """Return whether a projection's experts were ever split over processes; all or none are."""
    containers = (module for name, module in layer._modules.items() if name.startswith(DOWN))
    # Of a projection that is keys and values, another pool may have the first container to itself.
    mine: Any = next(held for held in containers if held is not None and adapter in held._modules)
    split: bool = mine[adapter].split
    return split


def pair_of(
    layer: nn.Module, adapter: str, index: int, read: Callable[[Tensor], Tensor] = Tensor.detach
) -> tuple[Tensor, Tensor]:
    """Return an expert's A and B at one projection as those of a plain LoRA, without their graph.

    Of a projection that holds keys and values, A has the A of both, one above the other, and B is zero in the
    rows of the queries: its rank is twice the expert's.

    Args:
        layer: The projection, a `RoutedLinear`.
        adapter: Adapter name.
        index: Position of the expert.
        read: What is done with each weight first.

    Returns:
        Of shapes [rank, d_in] and [d_out, rank].
    """
    downs, ups = [], []
    slices: dict[str, OutputSlice | None] = layer.slices_of(adapter)  # type: ignore[operator]
    for letter, output_slice in slices.items():
        names = expert_names(index, letter)
        down, up = (read(weight_of(layer, name, adapter)) for name in (names.down, names.up))
        if output_slice is None:
            return down, up
        whole = up.new_zeros(int(layer.out_features), up.shape[1])  # type: ignore[arg-type]
        whole[output_slice.indices()] = up  # [columns of the slice, rank] -> [d_out, rank]
        downs.append(down)
        ups.append(whole)
    return torch.cat(downs), torch.cat(ups, dim=1)
