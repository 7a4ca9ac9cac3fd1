"""Seeds of the router's noise that depend on nothing else: the next one, or an earlier one once more."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prw.errors import RoutingError

WORD = (1 << 64) - 1
REMEMBERED = 64
"""How many forwards of a site, at most, wait for gradient checkpointing to run them again."""
FEATURES = 32
"""How much of a forward's mean input tells it from another's."""


class Counter(Protocol):
    """Where the number of draws is kept; the pool's saved configuration, so that loading goes on there."""

    noise_draws: int


class NoiseStream:
    """A stream of seeds, one for every decision; its whole state is how many were drawn.

    Attributes:
        seed: Seed of the stream.
        counter: Keeps the number of draws.
    """

    def __init__(self, seed: int, counter: Counter) -> None:
        """Go on where the counter is."""
        self.seed = seed
        self.counter = counter

    def next_seed(self) -> int:
        """Draw the next seed.

        Raises:
            RoutingError: under torch.compile, which cannot trace a generator of one's own.
        """
        if torch.compiler.is_compiling():
            raise RoutingError(
                "noise_seed gives the router's noise a generator of its own, which torch.compile cannot "
                "trace. Train uncompiled, or leave noise_seed at None and seed torch itself with "
                "torch.manual_seed."
            )
        draw = self.counter.noise_draws
        self.counter.noise_draws = draw + 1
        return mixed(mixed(mixed(self.seed) ^ process_rank()) ^ draw) >> 1


def process_rank() -> int:
    """Give this process's place in a distributed run; 0 outside of one."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def mixed(number: int) -> int:
    """Scatter a number over 64 bits (splitmix64), so that neighbours have nothing in common.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
    """
    number = (number + 0x9E3779B97F4A7C15) & WORD
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & WORD
    return number ^ (number >> 31)


class Draw(NamedTuple):
    """The seed of one forward, and what it read in short."""

    mark: Tensor
    seed: int


class Drawn:
    """The seeds of a site's forwards that backward may run again; the input tells which one it is."""

    def __init__(self) -> None:
        """Start with none."""
        self._draws: deque[Draw] = deque(maxlen=REMEMBERED)
        self._used: set[int] = set()

    def __reduce__(self) -> tuple[type[Drawn], tuple[()]]:
        """Copy and pickle without the forwards, whose graphs stay where they are."""
        return Drawn, ()

    def add(self, hidden: Tensor, seed: int) -> None:
        """Note a forward's seed."""
        self._draws.append(Draw(mark_of(hidden), seed))

    def again(self, hidden: Tensor) -> int:
        """Give the seed that the forward with this input had: the latest, of equal ones.

        Raises:
            RoutingError: if no forward was noted.
        """
        if not self._draws:
            raise RoutingError(
                "backward recomputes a forward whose noise (noise_seed) was not noted: it ran without "
                "checkpointing, or in a copy of the model. Run forward and backward on the same model."
            )
        nearest, least = self._draws[-1], (float("inf"), True)
        for draw, far in zip(reversed(self._draws), self._distances(mark_of(hidden)), strict=True):
            if (far, draw.seed in self._used) < least:
                nearest, least = draw, (far, draw.seed in self._used)
            if least == (0.0, False):
                break
        self._used.add(nearest.seed)
        self._used.intersection_update(draw.seed for draw in self._draws)
        return nearest.seed

    def _distances(self, mark: Tensor) -> list[float]:
        """Say how far each noted input is from one, the latest first; the device is read once."""
        same = [draw.mark for draw in reversed(self._draws) if draw.mark.shape == mark.shape]
        far = iter((torch.stack(same) - mark).abs().amax(-1).tolist() if same else [])
        return [
            next(far) if draw.mark.shape == mark.shape else float("inf") for draw in reversed(self._draws)
        ]


def mark_of(hidden: Tensor) -> Tensor:
    """Sum an input up in a few numbers: the mean over its tokens of its first features."""
    return hidden.detach()[..., :FEATURES].float().flatten(0, -2).mean(0)
