"""Adds a loss of the recorded decisions to the `loss` of a model's output, with hooks that can be removed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

from torch import Tensor, nn

from prw.errors import ConfigError, PoolError, RoutingError
from prw.layers.pool import Pool
from prw.layers.reached import name_unreached
from prw.routing import Routing

AuxiliaryLoss = Callable[..., Tensor]
"""Takes a `Routing`, and `mask=` where the batch says which tokens count; returns a scalar."""

PartOfBatch = Callable[[nn.Module, Mapping[str, Any]], Tensor | float | None]
"""Takes a model and its forward's keyword arguments; gives the part of an accumulated batch that the forward
is, or None where it does not know the caller."""
CALLERS: list[PartOfBatch] = []
"""What `knows_caller` has registered."""


def knows_caller(part_of_batch: PartOfBatch) -> PartOfBatch:
    """Register a function that knows how a training loop divides a batch into forwards; a decorator.

    A loop that divides a model's loss by the size of the whole batch and sums over forwards needs an added
    loss weighted alike. Packages that know such a loop (`prw.integrations`) register here.
    """
    CALLERS.append(part_of_batch)
    return part_of_batch


class AddedLoss:
    """An auxiliary loss that is added to every training forward of a model, until it is removed.

    It is also a context manager: `with weave.add_to_loss(loss): trainer.train()`.
    """

    def __init__(self, model: nn.Module, pool: Pool, loss: AuxiliaryLoss, mask: str | None) -> None:
        """Hook the model's forward."""
        check_request(model, loss, mask)
        self._pool = pool
        self._loss = loss
        self._mask = mask
        self._recording: AbstractContextManager[Routing] | None = None
        self._routing: Routing | None = None
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Stop adding the loss; a second call changes nothing."""
        for hook in self._hooks:
            hook.remove()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start to record, in a training forward with the experts switched on."""
        self._close()  # what an interrupted forward left open
        if model.training and not self._pool.scope.disabled:
            if self._pool.recorder is not None:
                raise PoolError(
                    "this forward is being recorded already, by another add_to_loss or a `with "
                    "weave.record()`. One at a time: add several losses in one function."
                )
            recording = self._pool.recording()
            self._routing = recording.__enter__()
            self._recording = recording

    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Add the loss of what was recorded to the output's."""
        routing = self._close()
        if routing is None or (output is None and sys.exc_info()[0] is not None):
            return None  # nothing was recorded, or the forward has failed with an error of its own
        name_unreached(self._pool, routing, forward=True)
        if routing.experts and not routing.decisions:
            return None  # the adapter is off, or the batch does not use the blocks with experts
        own = own_loss(output, model)
        mask = kwargs.get(self._mask) if self._mask is not None else None
        loss = self._loss(routing) if mask is None else self._loss(routing, mask=mask.bool())
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise RoutingError(f"an added loss returns a scalar tensor; got {found}. Take its mean.")
        parts = (part for part_of in CALLERS if (part := part_of(model, kwargs)) is not None)
        return with_loss(output, own + (loss * next(parts, 1.0)).to(own.device))

    def _close(self) -> Routing | None:
        recording, routing = self._recording, self._routing
        self._recording = self._routing = None
        if recording is not None:
            recording.__exit__(None, None, None)
        return routing


def check_request(model: nn.Module, loss: object, mask: str | None) -> None:
    """Refuse what could only fail, or silently do nothing, in a forward."""
    if not callable(loss):
        raise ConfigError(
            f"add_to_loss takes a function of the recorded routing, got a {type(loss).__name__}. For example "
            "functools.partial(prw.veteran_loss, rho=0.8, alpha=0.5)."
        )
    if mask is None:
        return
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if mask not in parameters and not takes_any:
        raise ConfigError(
            f"the forward of {type(model).__name__} has no argument {mask!r}, so no token would be masked; "
            f"it has: {', '.join(parameters)}."
        )


def own_loss(output: Any, model: nn.Module) -> Tensor:
    """Find a model's own loss in its output: what is called `loss`, or the first of a tuple."""
    if isinstance(output, tuple | list):
        own = output[0] if output else None
    elif isinstance(output, Mapping):
        own = output.get("loss")
    else:
        own = getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.dim() == 0 and own.is_floating_point():
        return own
    raise RoutingError(
        f"the output of {type(model).__name__} ({type(output).__name__}) has no scalar loss to add the "
        "auxiliary loss to. Likely causes: the call had no labels, or the Trainer takes them out for its "
        "own loss (compute_loss_func, label_smoothing_factor). Pass labels to the model, call it in "
        "evaluation mode, or remove the added loss and add prw.veteran_loss(...) to your own loss."
    )


def with_loss(output: Any, loss: Tensor) -> Any:
    """Replace a model's own loss in its output; in place where the output can be changed."""
    if isinstance(output, tuple | list):
        rest = output[1:]
        return type(output)(loss, *rest) if hasattr(output, "_fields") else type(output)([loss, *rest])
    if isinstance(output, Mapping):
        output["loss"] = loss  # type: ignore[index]
    else:
        output.loss = loss
    return output
