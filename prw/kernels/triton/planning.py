"""Which choice goes to which expert, worked out on the device without asking it anything."""

# Shape suffixes: N items, K slots (choices of one item), T tokens, C choices (T * K, token-major), G groups.

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from prw.errors import ConfigError
from prw.kernels.triton.blocks import SMALL_ITEM, power_of_two
from prw.kernels.triton.sorting import count_kernel, place_kernel

INTERPRETED = not isinstance(count_kernel, triton.JITFunction)  # by TRITON_INTERPRET=1, for tests
SORT_CELLS = 4096  # tokens times groups that one program of the sort looks at
SORT_CHUNK = 16  # blocks whose counts are read together


@dataclass(frozen=True)
class Plan:
    """Where every choice goes.

    The rows in rank space are the choices, token by token and slot by slot, unrouted ones included: choice =
    token * slots + slot. Kernels that want them by expert go through `order`.

    Attributes:
        ids: Expert of every item's choice, int64 [N, K], contiguous; outside 0 .. experts - 1: none.
        experts: How many experts there are.
        tokens_per_item: Consecutive tokens that share one decision.
        groups: Length of the last axis of sizes.
        order: Tokens sorted by expert, slot by slot, int32 [K, T]; None where items are long enough to need
            no sort.
        sizes: Tokens of each group, int32 [K, G]: of every expert, of the unrouted, then padding.
    """

    ids: Tensor
    experts: int
    tokens_per_item: int
    groups: int
    order: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def slots(self) -> int:
        """How many experts each item chose."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.ids.shape[0] * self.tokens_per_item

    @property
    def choices(self) -> int:
        """How many rows there are in rank space."""
        return self.tokens * self.slots

    def routed(self) -> Tensor:
        """Mark which choices of the items have an expert, of shape [N, K]."""
        return (self.ids >= 0) & (self.ids < self.experts)

    def per_choice(self, values_NK: Tensor) -> Tensor:
        """Repeat the items' values for their choices, of shape [C]; zero where there is no expert."""
        kept_NK = torch.where(self.routed(), values_NK, 0)
        return per_token(kept_NK, self.tokens_per_item).reshape(self.choices)

    def per_item(self, values_C: Tensor) -> Tensor:
        """Add up an item's values over its tokens, of shape [N, K]: the transpose of `per_choice`."""
        values_NSK = values_C.reshape(len(self.ids), self.tokens_per_item, self.slots)
        return torch.where(self.routed(), values_NSK.sum(1), 0)

    def ids_per_token(self) -> Tensor:
        """Repeat the items' experts for their tokens, of shape [T, K]."""
        return per_token(self.ids, self.tokens_per_item)


def plan(expert_ids_NK: Tensor, experts: int, tokens_per_item: int, fixed: bool = True) -> Plan:
    """Sort the choices by expert, unless items are so long that each fills tiles of its own.

    Args:
        expert_ids_NK: Chosen experts of every item, int64 of shape [items, slots]; -1 for none.
        experts: How many there are to choose from.
        tokens_per_item: Consecutive tokens per item.
        fixed: Whether copies of weights can be kept; there are none here.

    Raises:
        ConfigError: if the ids are on a device that Triton cannot run on.
    """
    check_device(expert_ids_NK)
    ids_NK = expert_ids_NK.contiguous()
    groups = power_of_two(experts + 1)
    if tokens_per_item >= SMALL_ITEM or ids_NK.numel() == 0:
        return Plan(ids_NK, experts, tokens_per_item, groups)
    order_KT, sizes_KG = by_expert(per_token(ids_NK, tokens_per_item), experts, groups)
    return Plan(ids_NK, experts, tokens_per_item, groups, order_KT, sizes_KG)


def by_expert(ids_TK: Tensor, experts: int, groups: int) -> tuple[Tensor, Tensor]:
    """Sort tokens by expert, each slot for itself: the order of shape [K, T], the groups' sizes [K, G]."""
    tokens, slots = ids_TK.shape
    block = max(16, SORT_CELLS // groups)
    grid = (triton.cdiv(tokens, block), slots)
    counts = ids_TK.new_empty((slots, grid[0], groups), dtype=torch.int32)
    order_KT = ids_TK.new_empty((slots, tokens), dtype=torch.int32)
    sizes_KG = ids_TK.new_empty((slots, groups), dtype=torch.int32)
    sizes = {"BLOCK": block, "GROUPS": groups, "enable_fp_fusion": True}
    with torch.cuda.device_of(ids_TK):
        count_kernel[grid](ids_TK, counts, tokens, slots, experts, **sizes)
        place_kernel[grid](
            ids_TK, counts, order_KT, sizes_KG, tokens, slots, experts, CHUNK=SORT_CHUNK, **sizes
        )
    return order_KT, sizes_KG


def per_token(of_items_NK: Tensor, tokens_per_item: int) -> Tensor:
    """Repeat what belongs to items for each of their tokens, of shape [T, K]."""
    if tokens_per_item == 1:
        return of_items_NK
    return of_items_NK.unsqueeze(1).expand(-1, tokens_per_item, -1).flatten(0, 1).contiguous()


def check_device(tensor: Tensor) -> None:
    """Refuse a device on which no kernel here can run.

    Raises:
        ConfigError: if the tensor is not on a CUDA device and the kernels are not interpreted.
    """
    if not INTERPRETED and not tensor.is_cuda:
        raise ConfigError(
            f"kernel='triton' runs on CUDA devices, but came a tensor on {tensor.device}. Move the model and "
            "its inputs to CUDA, or choose kernel='auto'. (TRITON_INTERPRET=1, set before Python starts, "
            "runs the kernels on the CPU for tests, very slowly.)"
        )
