"""The matrix: torch's own attention, and timm's layout of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.prw.matrix.family import BATCH, TOKENS, Family


def hidden() -> dict[str, Any]:
    return {"src": torch.randn(BATCH, TOKENS, 16)}


def padded() -> dict[str, Any]:
    padding = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    padding[:, -1] = True
    return {"src": torch.randn(BATCH, TOKENS, 16), "src_key_padding_mask": padding}


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 2, 24, **{"batch_first": True, "dropout": 0.0, **options})


def attention_inputs() -> dict[str, Any]:
    memory = torch.randn(BATCH, 5, 16)
    return {"query": torch.randn(BATCH, TOKENS, 16), "key": memory, "value": memory}


class TimmAttention(nn.Module):
    """Attention with the names and the layout of timm's vision transformers."""

    def __init__(self, dim: int = 16, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, src: Tensor) -> Tensor:
        batch, count, width = src.shape
        packed = self.qkv(src).reshape(batch, count, 3, self.num_heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class TimmBlocks(nn.Module):
    """Two such attentions with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TimmAttention() for _ in range(2))

    def forward(self, src: Tensor) -> tuple[Tensor]:
        for block in self.blocks:
            src = src + block(src)
        return (src,)


class Attending(nn.Module):
    """An attention to a memory, in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.attention(query, key, value)


def family(name: str, build: Any, inputs: Any, read: Any = lambda output: output) -> Family:
    return Family(name, "torch", build, inputs, read)


FAMILIES = [
    family(
        "nn.MultiheadAttention",
        Attending,
        attention_inputs,
        lambda output: output[0],
    ),
    family(
        "nn.TransformerEncoder", lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False), hidden
    ),
    family(
        "nn.TransformerEncoder, padded batches",
        lambda: nn.TransformerEncoder(layer(), 2),
        padded,
        lambda output: output[:, :-1],
    ),
    family("nn.TransformerEncoderLayer, norm first", lambda: layer(norm_first=True), hidden),
    Family("qkv as in timm", "timm", TimmBlocks, hidden),
]
