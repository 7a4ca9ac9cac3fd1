"""Flow matching as pure functions: a batch's noise and times, the noisy picture and what is to be predicted.

Every sample draws from a generator of its own seed, so what it gets depends on neither batch-mates nor ranks.
Source: rectified flow as FLUX uses it; x_t = (1 - t) x0 + t noise, velocity noise - x0, t = sigmoid(normal).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.flux.transfer import to_device


class FlowSample(NamedTuple):
    """Noisy tokens [batch, tokens, channels], times [batch] (1 is pure noise), the velocity to predict."""

    noisy: Tensor
    timestep: Tensor
    velocity: Tensor


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [len(seeds), *shape], float32 on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=_generator(seed, "noise")) for seed in seeds])


def draw_timesteps(seeds: Sequence[int], mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Logit-normal times in (0, 1), one a seed: float32 [len(seeds)]."""
    normals = torch.cat([torch.randn(1, generator=_generator(seed, "timestep")) for seed in seeds])
    return torch.sigmoid(mean + std * normals)


def flow_sample(clean: Tensor, noise: Tensor, timestep: Tensor) -> FlowSample:
    """Mix clean tokens [batch, tokens, channels] with noise, in float32: bfloat16 would lose small times."""
    clean, noise = clean.float(), to_device(noise, clean.device).float()
    times = to_device(timestep, clean.device).float()
    weight = times.view(-1, *[1] * (clean.ndim - 1))
    return FlowSample((1 - weight) * clean + weight * noise, times, noise - clean)


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))
