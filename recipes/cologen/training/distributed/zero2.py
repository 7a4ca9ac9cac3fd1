"""DeepSpeed's ZeRO-2 for a pool: weights are whole everywhere, gradients and optimiser state divided.

Its engine brings gradients together and steps; losses, skipped steps, averages and checkpoints stay the
recipe's. `DividedOptimizer` stands where torch's optimiser would: its parameters are the pool's own, its
state is whole when it is asked for, and its file is the one that DDP writes. The engine is given the
trained parameters alone, so it copies no base, however that is quantised.

Source: ZeRO (arXiv 1910.02054), P_os+g.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recipes.cologen.errors import LaunchError

BUCKET = 20_000_000
"""Elements of gradients that are averaged at once, 80 MB; DeepSpeed's own default takes 2 GB."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside the count of steps."""


def wants_zero2() -> bool:
    """Whether accelerate was launched with DeepSpeed and several processes share the work.

    Raises:
        LaunchError: It is not ZeRO-2 as recipes/cologen/accelerate/deepspeed_zero2.yaml has it.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return False
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    places = [
        os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")
        for what in ("OPTIMIZER", "PARAM")
    ]
    if file.lower() != "none" or stage != "2" or any(place.lower() != "none" for place in places):
        raise LaunchError(
            f"accelerate was launched with DeepSpeed, zero_stage {stage}, deepspeed_config_file {file}, "
            f"offload {' and '.join(places)}. This recipe trains under ZeRO-2 without offload and makes "
            "DeepSpeed's settings itself: use recipes/cologen/accelerate/deepspeed_zero2.yaml, or fsdp2.yaml "
            "to split the base too."
        )
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_zero2(optimizer_name: str) -> None:
    """Check, before anything is loaded, that what was launched with DeepSpeed can be trained.

    Raises:
        LaunchError: As `wants_zero2`; DeepSpeed is missing, or it cannot divide this optimiser.
    """
    if not wants_zero2():
        return
    if optimizer_name == "adamw_8bit":
        raise LaunchError(
            "optimizer.name is adamw_8bit, whose state has a scale for each block of numbers, and ZeRO-2 "
            "cuts blocks in two. Set optimizer.name to adamw or adamw_fused, or use "
            "recipes/cologen/accelerate/ddp.yaml."
        )
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise LaunchError(
            f"accelerate was launched with DeepSpeed, which cannot be imported ({error}): "
            "pip install 'prw[deepspeed]', or use recipes/cologen/accelerate/ddp.yaml or fsdp2.yaml."
        ) from error


class Trained(nn.Module):
    """The module that DDP or DeepSpeed's engine wraps: one forward a step, and the trained parameters.

    Both would copy frozen weights from rank 0 to the others, which read the same file, and neither can copy
    weights of 8 bits.
    """

    def __init__(self, forward: Callable[..., Tensor], parameters: list[nn.Parameter]) -> None:
        """Hold both, however often a forward runs the base."""
        super().__init__()
        self.pool = nn.ParameterList(parameters)
        self._forward = forward

    def forward(self, *inputs: Any, **settings: Any) -> Tensor:
        """Predict the velocity."""
        return self._forward(*inputs, **settings)


def start_engine(
    forward: Callable[..., Tensor], optimizer: torch.optim.Optimizer, clip_norm: float
) -> tuple[Any, DividedOptimizer]:
    """Divide gradients and state of an optimiser that has not stepped.

    Args:
        forward: What the engine runs between its bookkeeping.
        optimizer: AdamW over one group of parameters in float32.
        clip_norm: Norm that gradients of all processes together are clipped to.

    Returns:
        DeepSpeed's engine, and the optimiser to train and save with.
    """
    import deepspeed

    # Its own call for bringing weights together, under the name that torch gave it before 2.13.
    warnings.filterwarnings(
        "ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning
    )
    divided = DividedOptimizer(optimizer)
    parameters = divided.param_groups[0]["params"]
    engine, *_ = deepspeed.initialize(
        model=Trained(forward, parameters), optimizer=optimizer, config=_settings(clip_norm)
    )
    divided.take(engine)
    return engine, divided


def _settings(clip_norm: float) -> dict[str, Any]:
    # Batches and their accumulation are the recipe's; sizes here only have to agree with each other.
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": BUCKET},
        "steps_per_print": None,
    }


class DividedOptimizer(torch.optim.Optimizer):
    """An optimiser whose state lies in parts on several processes; steps, loads and saves in all of them.

    Args:
        optimizer: The one that is divided; its groups are read before the engine changes them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the parameters; see the class."""
        (group,) = optimizer.param_groups
        super().__init__(
            list(group["params"]), {key: value for key, value in group.items() if key != "params"}
        )
        self._inner = optimizer
        self._engine: Any = None

    def take(self, engine: Any) -> None:
        """Go on with the engine that divided it."""
        self._engine = engine

    def norm(self) -> Tensor:
        """Norm of the gradients of all processes, infinite if any is no number; the step clips by it."""
        norm: Tensor = self._engine.optimizer.scaled_global_norm()
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients; those that were brought together are written over by the next step's."""
        self._engine.optimizer.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights on all processes, at the learning rate of the first group."""
        for group in self._inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self._engine.step()

    def state_dict(self) -> dict[str, Any]:
        """Whole state, as AdamW alone would have it; all processes must ask."""
        ((flat,),) = (group["params"] for group in self._inner.param_groups)
        part = self._inner.state.get(flat, {})
        if part:
            for parameter in self.param_groups[0]["params"]:
                moments = {name: _gathered(part[name], parameter) for name in MOMENTS}
                self.state[parameter] = {"step": part["step"].clone(), **moments}
        content: dict[str, Any] = super().state_dict()
        self.state.clear()
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's part of a whole state."""
        super().load_state_dict(state_dict)
        ((flat,),) = (group["params"] for group in self._inner.param_groups)
        part: dict[str, Tensor] = {name: torch.zeros_like(flat) for name in MOMENTS}
        for parameter, values in self.state.items():
            part["step"] = values["step"].clone()
            for name in MOMENTS:
                here, there = _places(part[name], parameter, values[name])
                here.copy_(there)
        if self.state:
            self._inner.state[flat].update(part)
        self.state.clear()


def _gathered(flat: Tensor, parameter: Tensor) -> Tensor:
    """A parameter's state, of which each process has a stretch or nothing, as a whole."""
    whole = torch.zeros_like(parameter)
    here, there = _places(flat, parameter, whole)
    there.copy_(here)
    torch.distributed.all_reduce(whole)
    return whole


def _places(flat: Tensor, parameter: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Where this process keeps a stretch of a parameter's state, and where that is in the whole; views."""
    place = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's; None if another process has all
    if place is None:
        return flat[:0], whole.view(-1)[:0]
    here, there = place.hp_fragment_address, place.lp_fragment_address
    return (
        flat.narrow(0, here.start, here.numel),
        whole.view(-1).narrow(0, there.start, there.numel),
    )
