"""What the diffusion models of the matrix are fed."""

from __future__ import annotations

from typing import Any

import torch

from tests.prw.matrix.family import BATCH


def latents(channels: int = 4, size: int = 8) -> torch.Tensor:
    return torch.randn(BATCH, channels, size, size)


def unet() -> dict[str, Any]:
    return {
        "sample": latents(),
        "timestep": torch.tensor([1, 5]),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
    }


def sdxl() -> dict[str, Any]:
    added = {"text_embeds": torch.randn(BATCH, 8), "time_ids": torch.randint(8, (BATCH, 6))}
    return {**unet(), "added_cond_kwargs": added}


def flux() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 6, 4),
        "encoder_hidden_states": torch.randn(BATCH, 3, 24),
        "pooled_projections": torch.randn(BATCH, 12),
        "timestep": torch.rand(BATCH),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }


def flux2() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 6, 4),
        "encoder_hidden_states": torch.randn(BATCH, 3, 24),
        "timestep": torch.rand(BATCH),
        "img_ids": torch.zeros(6, 4),
        "txt_ids": torch.zeros(3, 4),
        "guidance": torch.ones(BATCH),
    }


def hidream() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "timesteps": torch.tensor([1, 5]),
        "encoder_hidden_states_t5": torch.randn(BATCH, 3, 12),
        "encoder_hidden_states_llama3": {layer: torch.randn(BATCH, 3, 10) for layer in range(2)},
        "pooled_embeds": torch.randn(BATCH, 16),
    }


def chroma() -> dict[str, Any]:
    kept = {name: value for name, value in flux().items() if name != "pooled_projections"}
    return {**kept, "encoder_hidden_states": torch.randn(BATCH, 3, 32)}


def sd3() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "encoder_hidden_states": torch.randn(BATCH, 3, 16),
        "pooled_projections": torch.randn(BATCH, 12),
        "timestep": torch.tensor([1, 5]),
    }


def pixart() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "timestep": torch.tensor([1, 5]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def sana() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "timestep": torch.tensor([1, 5]),
    }


def qwen() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 4, 16),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "encoder_hidden_states_mask": torch.ones(BATCH, 3, dtype=torch.long),
        "timestep": torch.rand(BATCH),
        "img_shapes": [[(1, 2, 2)]] * BATCH,
    }


def video(channels: int = 4, text: int = 12, frames: int = 1) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, channels, frames, 4, 4),
        "encoder_hidden_states": torch.randn(BATCH, 3, text),
        "timestep": torch.tensor([1, 5]),
    }


def hunyuan() -> dict[str, Any]:
    return {
        **video(),
        "encoder_attention_mask": torch.ones(BATCH, 3),
        "pooled_projections": torch.randn(BATCH, 8),
        "guidance": torch.tensor([1000.0, 1000.0]),
    }


def cogvideo() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 1, 4, 4, 4),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "timestep": torch.tensor([1, 5]),
    }


def lumina() -> dict[str, Any]:
    return {
        "hidden_states": latents(4, 4),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "timestep": torch.rand(BATCH),
        "encoder_attention_mask": torch.ones(BATCH, 3, dtype=torch.bool),
    }


def aura() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "encoder_hidden_states": torch.randn(BATCH, 3, 12),
        "timestep": torch.rand(BATCH),
    }


def dit() -> dict[str, Any]:
    return {
        "hidden_states": latents(),
        "timestep": torch.tensor([1, 5]),
        "class_labels": torch.tensor([1, 2]),
    }


def z_image() -> dict[str, Any]:
    return {
        "x": [torch.randn(4, 1, 4, 4) for _ in range(BATCH)],
        "t": torch.rand(BATCH),
        "cap_feats": [torch.randn(3, 12) for _ in range(BATCH)],
        "patch_size": 2,
        "f_patch_size": 1,
    }
