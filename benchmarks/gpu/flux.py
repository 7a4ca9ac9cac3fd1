"""Steps of a whole FLUX with FLUX.1's proportions on the device: plain, with PEFT's LoRA, with pools."""

from __future__ import annotations

import statistics
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import LORA
from benchmarks.gpu.clock import Candidate, first_line, measured, prepared
from benchmarks.gpu.device import Device
from benchmarks.gpu.schema import Failure
from benchmarks.measuring import paired, spread
from benchmarks.schema import Step

POOLS = (1, 5, 8)
PLAIN_FLUX = "plain FLUX"
What = Literal["denoising step", "training step"]
WHATS: tuple[What, ...] = ("denoising step", "training step")


class Models:
    """Every case's model on shared weights, in the dtype that is timed; built one after another."""

    def __init__(self, device: Device, sizes: tuple[int, int, int, int], rank: int) -> None:
        """Draw the shared weights and the batch.

        Raises:
            ImportError: without diffusers.
        """
        self.steps: Any = import_module("benchmarks.flux_steps")
        heads, head, side, text = sizes
        self.geometry = self.steps.Geometry(heads=heads, head=head, side=side, text=text, rank=rank)
        self.device = device
        torch.manual_seed(0)
        drawn = self.steps.flux(self.geometry, str(device.torch_device)).state_dict()
        self.weights = {name: weight.to(device.dtype) for name, weight in drawn.items()}
        self.batch = {
            name: self.moved(name, tensor) for name, tensor in self.steps.inputs(self.geometry).items()
        }

    def moved(self, name: str, tensor: Tensor) -> Tensor:
        """Put an input on the device; positions stay in float32."""
        dtype = tensor.dtype if name.endswith("_ids") else self.device.dtype
        made = tensor.detach().to(self.device.torch_device, dtype)
        return made.requires_grad_(tensor.requires_grad)

    def build(self, name: str) -> tuple[nn.Module, Any]:
        """Build a case: its model, and a pool's handle. Experts and LoRA have one dtype."""
        weave = None
        if name == PLAIN_FLUX:
            model = self.steps.plain(self.geometry, self.weights)
        elif name == LORA:
            model = self.steps.with_lora(self.geometry, self.weights)
        else:
            model, weave = self.steps.with_pool(self.geometry, self.weights, experts_of(name))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.device.torch_device, self.device.dtype)
        return model, weave


def experts_of(name: str) -> int:
    """Read the number of experts off a case's name."""
    return int(name.partition("N=")[2]) if "N=" in name else int(name == LORA)


def flux_steps(
    device: Device, sizes: tuple[int, int, int, int], rank: int, rounds: int, ours: bool
) -> tuple[list[Step], list[Failure]]:
    """Time a denoising and a training step of every case; with `ours` false, without pools."""
    failures: list[Failure] = []
    names = [PLAIN_FLUX, LORA, *(f"prw, N={experts}" for experts in POOLS if ours)]
    try:
        models = Models(device, sizes, rank)
        built = {name: models.build(name) for name in names}
    except Exception as error:
        why = first_line(error)
        return [], [Failure(case=f"a FLUX of rank {rank}", at=None, why=why)]
    found: list[Step] = []
    for what in WHATS:
        cases: dict[str, Candidate] = {}
        for name, (model, weave) in built.items():
            make = models.steps.denoising_step if what == "denoising step" else models.steps.training_step
            arguments = (model, models.batch) if what == "denoising step" else (model, weave, models.batch)
            try:
                cases[name] = prepared(device, make(*arguments), record=False)
            except Exception as error:
                failures.append(Failure(case=f"{name}, {what}", at=None, why=first_line(error)))
        found += timed_steps(device, what, cases, {name: model for name, (model, _) in built.items()}, rounds)
        cases.clear()
        device.still_there(what)
    return found, failures


def timed_steps(
    device: Device, what: What, cases: dict[str, Candidate], models: dict[str, nn.Module], rounds: int
) -> list[Step]:
    """Time the steps side by side, as they are launched without graphs; nothing without both references."""
    if PLAIN_FLUX not in cases or LORA not in cases:
        return []
    times = {one.name: one for one in measured(device, cases, rounds, [("eager", "warm")])}
    found = []
    for name, one in times.items():
        of_time, of_ratio = spread(one.all), paired(one.all, times[PLAIN_FLUX].all)
        trained = (parameter.numel() for parameter in models[name].parameters() if parameter.requires_grad)
        found.append(
            Step(
                case=name,
                what=what,
                experts=experts_of(name),
                trainable=sum(trained),
                median_ms=1e3 * of_time.median,
                iqr_ms=1e3 * of_time.iqr,
                ratio=of_ratio.median,
                ratio_iqr=of_ratio.iqr,
                ratio_to_lora=statistics.median(
                    mine / theirs for mine, theirs in zip(one.all, times[LORA].all, strict=True)
                ),
            )
        )
    return found
