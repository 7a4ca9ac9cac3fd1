"""The optimiser of a stage, and the running average of what it trains, which travels in its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from recipes.cologen.config.model import OptimizerSettings
from recipes.cologen.errors import MachineError

AVERAGE = "average"
"""Key of the average in the optimiser's state, so that both are saved together."""


class ExpertAverage:
    """A running average of the newest expert and its gates; the decay rises to the one asked for.

    It follows every step of the optimiser, and is saved and restored with the optimiser's state.

    Source: `diffusers.training_utils.EMAModel`; decay of step n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        """Begin with the present weights; see the class."""
        self._parameters = _parameters(optimizer)
        self._average = EMAModel(self._parameters, decay=decay)
        optimizer.register_step_post_hook(lambda *_: self._average.step(self._parameters))
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages where the weights are, and the weights back afterwards."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weights in zip(self._parameters, kept, strict=True):
                    parameter.copy_(weights)

    def keep(self) -> None:
        """Put the averages where the weights are, for good."""
        self._average.copy_to(self._parameters)

    def _save(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, AVERAGE: self._average.state_dict()}

    def _load(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        self._average.load_state_dict(state[AVERAGE])
        self._average.to(self._parameters[0].device)
        return {key: value for key, value in state.items() if key != AVERAGE}


def make_optimizer(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW on these parameters and no others; the learning rate is set before each step.

    Raises:
        MachineError: bitsandbytes is missing.
    """
    options: dict[str, Any] = {
        "lr": 0.0,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "adamw_8bit":
        return _eight_bit(parameters, options)
    if settings.name == "adamw_fused":
        options["fused"] = True
    return torch.optim.AdamW(parameters, **options)


def make_average(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> ExpertAverage | None:
    """The running average of what an optimiser trains, where the settings ask for one."""
    if settings.ema_decay is None:
        return None
    return ExpertAverage(optimizer, settings.ema_decay)


def _eight_bit(parameters: Sequence[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MachineError(
            f"optimizer.name=adamw_8bit needs bitsandbytes, which cannot be imported ({error}): pip install "
            "bitsandbytes, or use adamw or adamw_fused."
        ) from error

    class Restorable(AdamW8bit):  # type: ignore[misc]  # bitsandbytes is not checked
        """Calls what is registered to see a state before it is loaded, as torch's own optimisers do."""

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            for hook in self._optimizer_load_state_dict_pre_hooks.values():
                state_dict = hook(self, state_dict) or state_dict
            super().load_state_dict(state_dict, move_to_device)

    optimizer: torch.optim.Optimizer = Restorable(list(parameters), **options)
    return optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
