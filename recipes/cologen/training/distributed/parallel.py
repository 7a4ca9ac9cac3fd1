"""Spreads what is trained over processes, as accelerate was launched: DDP, ZeRO-2, FSDP2, or one alone.

DDP keeps the whole base on every device and averages the pool's gradients; ZeRO-2 (zero2.py) also divides
them and the optimiser's state. FSDP2 splits base and pool, block by block, and puts each block together for
as long as it computes. A pool cannot grow once it is split, so a stage under FSDP2 begins with the base as
it is on disk.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import fsdp2_prepare_model, patch_environment
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from recipes.cologen.errors import LaunchError
from recipes.cologen.flux.base import FluxBase, Sources
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.two_step import SourceKV
from recipes.cologen.training.distributed.zero2 import (
    DividedOptimizer,
    Trained,
    check_zero2,
    start_engine,
    wants_zero2,
)
from recipes.cologen.training.optimizers import AVERAGE


def wants_split() -> bool:
    """Whether accelerate was launched with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def waits_for_split() -> bool:
    """Whether a base is loaded to be split: under FSDP, where several processes were launched."""
    return wants_split() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def splits(accelerator: Accelerator) -> bool:
    """Whether base and pool are to be split over processes."""
    return wants_split() and accelerator.num_processes > 1


def divides(accelerator: Accelerator) -> bool:
    """Whether gradients and optimiser state are to be divided by DeepSpeed's ZeRO-2."""
    return wants_zero2() and accelerator.num_processes > 1


def deepspeed_is_ours(optimizer_name: str) -> AbstractContextManager[Any]:
    """Where an Accelerator is made that leaves DeepSpeed to `Parallel`, so that it computes as under DDP.

    accelerate would cast nothing to 16 bits under DeepSpeed, and on CPUs it drops it without a word.

    Raises:
        LaunchError: DeepSpeed is missing, or not launched as ZeRO-2, or cannot divide this optimiser.
    """
    check_zero2(optimizer_name)
    context: AbstractContextManager[Any] = patch_environment(accelerate_use_deepspeed="false")
    return context


def sharding_plugin(quantisation: str | None = None) -> FullyShardedDataParallelPlugin | None:
    """What the launcher's environment says of FSDP; None where it says nothing.

    Nothing is cast: accelerate would have experts computed in the base's 16 bits.

    Args:
        quantisation: How the base is quantised, `base.quantisation`.

    Raises:
        LaunchError: It is FSDP 1, which flattens frozen and trained weights into one; or a quantised base
            would have to be split.
    """
    if not wants_split():
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError(
            "accelerate was launched with FSDP version 1, which cannot hold frozen and trained weights of a "
            "block apart. Set fsdp_version: 2, as recipes/cologen/accelerate/fsdp2.yaml does."
        )
    if quantisation is not None and waits_for_split():
        raise LaunchError(
            f"base.quantisation={quantisation} and FSDP2 do not go together: torchao's weights of 8 bits "
            "cannot be cut (they lack aten.split), and bitsandbytes' would stay whole on every device. Use "
            "recipes/cologen/accelerate/ddp.yaml, which holds the quantised base on each, or "
            "--set base.quantisation=null."
        )
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False)
    )


class Parallel:
    """How training calls the base, and how its gradients come together.

    Args:
        model: The base with its pool, not yet split.
        accelerator: As it was launched.
    """

    def __init__(self, model: FluxBase, accelerator: Accelerator) -> None:
        """Split or wrap the model; see the class."""
        self._model, self._accelerator = model, accelerator
        self.split = splits(accelerator)
        self._forward: nn.Module | None = None
        self._divides = divides(accelerator)
        self._engine: Any = None
        if self.split:
            _split(model, accelerator)
        elif accelerator.num_processes > 1 and not self._divides:  # DeepSpeed's engine wants the optimiser
            parameters = [each for each in model.transformer.parameters() if each.requires_grad]
            self._forward = accelerator.prepare_model(Trained(model.velocity, parameters))

    def velocity(
        self, noise: ImageTokens, timestep: Tensor, text: TextTokens, source: Sources, **settings: Any
    ) -> Tensor:
        """Predict the velocity with gradients, as `FluxBase.velocity`."""
        if self._forward is not None:
            velocity: Tensor = self._forward(noise, timestep, text, source, **settings)
            return velocity
        read: Sources | SourceKV = source
        if self.split and settings["source_timestep"] == "zero":
            read = self._model.source_kv(source, text, settings["guidance"])
            _put_together_for_backward(self._model.transformer, read)
        return self._model.velocity(noise, timestep, text, read, **settings)

    def divide(self, optimizer: torch.optim.Optimizer, clip_norm: float) -> torch.optim.Optimizer:
        """The optimiser to train with in place of one that has not stepped; under ZeRO-2 it is another."""
        if not self._divides:
            return optimizer
        self._engine, divided = start_engine(self._model.velocity, optimizer, clip_norm)
        self._forward = self._engine
        return divided

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        if self._engine is None:
            loss.backward()
        else:
            self._engine.backward(loss)

    def gather_later(self) -> AbstractContextManager[Any]:
        """Leave gradients on this process, for a micro-batch that is not the last of a step."""
        if self._engine is not None:
            return self._accumulating()
        if self._forward is not None:
            context: AbstractContextManager[Any] = self._forward.no_sync()  # type: ignore[operator]
            return context
        return nullcontext()

    def release(self) -> None:
        """Let go of the model, so that its pool can grow; there is no training with this one afterwards."""
        if self._engine is not None:
            self._engine.destroy()  # takes its hooks off the parameters
        self._engine = self._forward = None

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip what an optimiser is going to step by to a norm, and give the norm that it had.

    Under ZeRO-2 the step clips, to the norm that the engine was started with.
    """
    if isinstance(optimizer, DividedOptimizer):
        return optimizer.norm()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def _split(model: FluxBase, accelerator: Accelerator) -> None:
    """Split the transformer as accelerate's FSDP2 plugin does, each block by itself."""
    state = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:  # on CPUs accelerate reads the plugin and drops it
        state.fsdp_plugin = sharding_plugin()
    # FLUX's blocks return slices, and nothing is done to them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    fsdp2_prepare_model(accelerator, model.transformer)


def _put_together_for_backward(transformer: nn.Module, pairs: SourceKV) -> None:
    """Have blocks whole again when gradients come back to the keys and values that they gave the noise.

    FSDP2 waits for gradients of a block's outputs, but these keys and values bypass the outputs.
    """
    for site in pairs.sites:
        block = transformer.get_submodule(site.rpartition(".")[0])
        if isinstance(block, FSDPModule):
            for tensor in pairs.read(site):
                if tensor.requires_grad:
                    tensor.register_hook(_unsharding(block))


def _unsharding(block: FSDPModule) -> Callable[[Tensor], None]:
    def before(gradient: Tensor) -> None:
        block.unshard()

    return before


def whole(value: Any) -> Any:
    """A tensor on the CPU with all its parts, also within dicts and lists; every process must ask."""
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state, and the average that travels in it, as one process has them; all must ask."""
    state: dict[str, Any] = whole(optimizer.state_dict())
    return state


def load_whole_state(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Put a whole state back into an optimiser, whose parameters may be split."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {name: _like(value, parameters[number]) for name, value in values.items()}
        for number, values in content["state"].items()
    }
    content = {**content, "state": state}
    if AVERAGE in content:
        averages = zip(content[AVERAGE]["shadow_params"], parameters, strict=True)
        content[AVERAGE] = {
            **content[AVERAGE],
            "shadow_params": [_like(value, parameter) for value, parameter in averages],
        }
    optimizer.load_state_dict(content)


def _like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor split as a parameter is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        there = value.to(parameter.device)
        return distribute_tensor(there, parameter.device_mesh, parameter.placements)
    return value
