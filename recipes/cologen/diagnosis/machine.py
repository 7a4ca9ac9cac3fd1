"""Settings that only the machine of a run can serve: packages, quantisation, attention, the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers.models import attention_dispatch

from recipes.cologen.config.run import RunConfig
from recipes.cologen.errors import CologenError, MachineError
from recipes.cologen.flux.placement import check_compile_backend
from recipes.cologen.flux.quantisation import quantization_config
from recipes.cologen.training.optimizers import make_optimizer
from recipes.cologen.training.preflight import Problem, Unchecked

Check = tuple[str, Callable[[], object]]
"""A setting as it is written, and what raises where this machine cannot serve it."""


def machine_problems(config: RunConfig) -> list[Problem]:
    """What this machine cannot do of what a run asks for."""
    found = []
    for _, check in _checks(config):
        try:
            check()
        except CologenError as error:
            found.append(Problem("machine", str(error)))
    return found


def unchecked_machine(config: RunConfig, gpu: str) -> list[Unchecked]:
    """What a machine with another GPU would have to serve; nothing where a run asks for nothing special."""
    settings = [setting for setting, _ in _checks(config)]
    if not settings:
        return []
    why = f"{', '.join(settings)} need packages and a GPU that may not be here: the run is planned for {gpu}"
    return [Unchecked("machine", why, "ask the doctor on that machine, without --gpu and --gpu-memory")]


def _checks(config: RunConfig) -> Iterator[Check]:
    quantisation, machine, name = config.base.quantisation, config.machine, config.optimizer.name
    if quantisation is not None:
        dtype = getattr(torch, config.base.dtype)
        yield f"base.quantisation={quantisation}", lambda: quantization_config(quantisation, dtype)
    if machine.attention is not None:
        yield f"machine.attention={machine.attention}", lambda: _check_attention(str(machine.attention))
    if machine.compile:
        backend = machine.compile_backend
        yield f"machine.compile_backend={backend}", lambda: check_compile_backend(backend)
    if name == "adamw_8bit":
        weight = torch.nn.Parameter(torch.zeros(1))
        yield f"optimizer.name={name}", lambda: make_optimizer([weight], config.optimizer)


def _check_attention(backend: str) -> None:
    """Ask diffusers whether it can use a backend, without making it the process's.

    Raises:
        MachineError: It does not know it, or a package is missing.
    """
    try:
        named = attention_dispatch.AttentionBackendName(backend.lower())
        attention_dispatch._check_attention_backend_requirements(named)
    except (ValueError, RuntimeError, ImportError) as error:
        raise MachineError(f"machine.attention={backend} cannot be used: {error}") from error
