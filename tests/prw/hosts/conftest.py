"""Tiny diffusers models and pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig

from tests.prw.conftest import Host, flux

POOL = {"rank": 4, "experts": ["a", "b"]}
LORA = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)


def unet() -> Host:
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }
    return Host(model, inputs, lambda output: output.sample, 8, {"scale": "cross_attention_kwargs"})


def flux_with_scale() -> Host:
    host = flux()
    host.extras["scale"] = "joint_attention_kwargs"
    return host


@pytest.fixture(params=[flux_with_scale, unet], ids=["flux", "unet"])
def denoiser(request: pytest.FixtureRequest) -> Host:
    """A Flux transformer and a UNet with cross-attention, in turn."""
    host: Host = request.param()
    host.model.eval()
    return host


@pytest.fixture
def make_pipeline() -> Callable[[Host], Any]:
    """A maker of pipelines around a denoiser; the same class that a user would have."""

    def make(host: Host) -> Any:
        if isinstance(host.model, UNet2DConditionModel):
            return DDPMPipeline(unet=host.model, scheduler=DDPMScheduler())
        nothing = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
        return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=host.model, **nothing)

    return make


@pytest.fixture
def twin(denoiser: Host) -> Callable[[], Host]:
    """A maker of models with the denoiser's own base weights, taken before anything was injected."""
    base = {name: weight.clone() for name, weight in denoiser.model.state_dict().items()}

    def make() -> Host:
        other = unet() if isinstance(denoiser.model, UNet2DConditionModel) else flux_with_scale()
        other.model.load_state_dict(base)
        other.model.eval()
        other.inputs = denoiser.inputs
        return other

    return make
