"""Tiny models of the families that prw supports, and what is asked of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

import prw


@dataclass
class Host:
    """A tiny model with inputs, and how to get one tensor out of it."""

    model: nn.Module
    inputs: dict[str, Any]
    read: Callable[[Any], Tensor]
    sites: int
    extras: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Tensor:
        return self.read(self.model(**self.inputs))


def flux(blocks: int = 1) -> Host:
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 3, 24),
        "pooled_projections": torch.randn(2, 12),
        "timestep": torch.rand(2),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    return Host(model, inputs, lambda output: output.sample, 2 * blocks)


def llama(layers: int = 2) -> Host:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    inputs = {"input_ids": torch.randint(0, 40, (2, 7))}
    return Host(LlamaForCausalLM(config), inputs, lambda output: output.logits, layers)


def bert() -> Host:
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    inputs = {"input_ids": torch.randint(0, 40, (2, 7))}
    return Host(BertModel(config), inputs, lambda output: output.last_hidden_state, 2)


def vit() -> Host:
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    return Host(ViTModel(config), inputs, lambda output: output.last_hidden_state, 2)


class Attention(nn.Module):
    """The plainest attention there is: one head, separate projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        return hidden + torch.nn.functional.scaled_dot_product_attention(query, key, value)


class Plain(nn.Module):
    """A stack of plain attentions, for what needs no host library."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention(width) for _ in range(blocks))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


HOSTS: dict[str, Callable[[], Host]] = {"flux": flux, "llama": llama, "bert": bert, "vit": vit}


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> Host:
    """Each tiny model in turn, in evaluation mode."""
    made = HOSTS[request.param]()
    made.model.eval()
    return made


@pytest.fixture
def make_host() -> Callable[[str], Host]:
    """A maker of tiny models by name."""
    return lambda name: HOSTS[name]()


@pytest.fixture
def make_plain() -> Callable[..., Plain]:
    """A maker of plain attention stacks."""
    return Plain


@pytest.fixture
def wake() -> Callable[[prw.Weave], None]:
    """Give every expert a B that is not zero and every router a clear opinion, as training would."""

    def wake_up(weave: prw.Weave) -> None:
        generator = torch.Generator().manual_seed(7)
        for name, parameter in weave.model.named_parameters():
            if ".prw_B" in name or ".prw_gate" in name or ".prw_noise" in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    return wake_up
