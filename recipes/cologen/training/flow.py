"""Flow matching as pure functions: a batch's noise and times, its noisy tokens and the velocity to predict.

Every sample has a generator of its own seed, so what it gets depends on neither batch-mates nor ranks.
Source: rectified flow as FLUX uses it; x_t = (1 - t) x0 + t noise, velocity noise - x0, t = sigmoid(normal).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.flux.transfer import to_device


def sample_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [len(seeds), *shape], float32 on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=_generator(seed, "noise")) for seed in seeds])


def sample_timesteps(seeds: Sequence[int], mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Logit-normal times in (0, 1), one per seed: float32 [len(seeds)]."""
    normals = torch.cat([torch.randn(1, generator=_generator(seed, "timestep")) for seed in seeds])
    return torch.sigmoid(mean + std * normals)


def interpolate(clean: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mix clean tokens with noise, in float32: bfloat16 would lose small times.

    Args:
        clean: Tokens [batch, tokens, channels]; everything comes to their device.
        noise: Of the same shape.
        timestep: [batch], 1 is pure noise.

    Returns:
        Noisy tokens [batch, tokens, channels], times [batch], and the velocity to predict, as the tokens.
    """
    clean, noise = clean.float(), to_device(noise, clean.device).float()
    times = to_device(timestep, clean.device).float()
    weight = times.view(-1, *[1] * (clean.ndim - 1))  # [batch] -> [batch, 1, 1]
    return (1 - weight) * clean + weight * noise, times, noise - clean


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))
