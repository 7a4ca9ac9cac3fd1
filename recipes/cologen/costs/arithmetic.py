"""Floating-point operations of a training step, counted by torch on a base without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from prw.config import PoolSettings
from recipes.cologen.costs.activations import Encoded, Load, encode, over_depth, step_loss, woven
from recipes.cologen.costs.shapes import BaseShape


def step_flops(shape: BaseShape, pool: PoolSettings, load: Load) -> int:
    """Matrix products, convolutions and attention of one micro-batch; a product and a sum are two.

    Encoders are not among them. With gradient checkpointing the forward pass counts twice.
    """
    encoded = encode(shape, load)
    return over_depth(shape, lambda blocks: (_count(shape, pool, load, encoded, blocks),))[0]


def _count(
    shape: BaseShape, pool: PoolSettings, load: Load, encoded: Encoded, blocks: tuple[int, int]
) -> int:
    with FakeTensorMode():
        model, weave = woven(shape, pool, load, blocks)
        with FlopCounterMode(display=False, custom_mapping=_attention()) as counter:
            step_loss(model, weave, load, encoded).backward()
        return int(counter.get_total_flops())


def _attention() -> dict[Any, Any]:
    """Formulas for attention as it is done on a host, for which torch has none of its own."""

    def forward(query: Any, key: Any, value: Any, *others: Any, out_val: Any = None, **more: Any) -> int:
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))

    def backward(
        gradient: Any, query: Any, key: Any, value: Any, *others: Any, out_val: Any = None, **more: Any
    ) -> int:
        return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))

    formulas: tuple[Any, Any] = (forward, backward)
    for formula in formulas:
        formula._get_raw = True  # how FlopCounterMode tells one that takes tensors
    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
