"""Which rows of a site's input belong to one sample, where whole samples are routed.

Axis 0 is the sample, as in [batch, tokens, d], unless `weave.samples(...)` says otherwise. With images laid
end to end ([tokens, d]), windows or frames folded into axis 0, or tokens first ([tokens, batch, d]) the means
would be of other rows than a sample's, and an image's output could depend on its batch-mates.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prw.errors import ConfigError, RoutingError
from prw.execution import traced
from prw.routing import SampleGroups

ADVICE = (
    "Say which sample each row belongs to with `with weave.samples(...)`, or route every token by itself "
    "with granularity='token'."
)

Shape = tuple[torch.device, torch.Size, int, bool]
"""Device and shape of an input without its width, version of the given index, whether in inference mode."""
KEPT = 32
"""How many shapes of inputs the groups are kept for."""

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_always_called",
)
"""The dictionaries in which torch keeps the kinds of hooks that are used here."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that a caller has given for the rows.

    Attributes:
        count: Number of samples.
        index: Sample of each row, int64 of shape [axis 0] or [axis 0, axis 1]; None where every sample has
            equally many rows, one sample after the other.
    """

    count: int
    index: Tensor | None
    _made: dict[Shape, SampleGroups] = field(init=False, default_factory=dict)

    @classmethod
    def checked(cls, given: Tensor | int, device: torch.device) -> Samples:
        """Check what `weave.samples` was given, and move it to the model's device.

        Raises:
            ConfigError: if it is neither a positive number nor a tensor of integers from 0 up of 1 or 2 axes.
        """
        if isinstance(given, int) and not isinstance(given, bool) and given > 0:
            return cls(given, None)
        if isinstance(given, Tensor) and whole_numbers(given):
            return cls(int(given.max()) + 1, given.to(device, torch.long))
        found = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else repr(given)
        raise ConfigError(
            "samples takes the number of samples, or the sample of each row: integers from 0 up, of shape "
            f"[axis 0] or [axis 0, axis 1] of what the sites see; got {found}."
        )

    def groups(self, hidden: Tensor, site: str) -> SampleGroups:
        """Return the sample of each row of an input of shape [..., d]; computed once for inputs of one shape.

        Raises:
            RoutingError: if the input has other rows than the ones given.
        """
        if not keeps(hidden, self.index):
            return self._groups(hidden, site)
        version = 0 if self.index is None else self.index._version
        shape = (hidden.device, hidden.shape[:-1], version, torch.is_inference_mode_enabled())
        groups = self._made.get(shape)
        if groups is None:
            if len(self._made) >= KEPT:
                self._made.clear()
            groups = self._made[shape] = self._groups(hidden, site)
        return groups

    def _groups(self, hidden: Tensor, site: str) -> SampleGroups:
        """Compute the sample of each row."""
        around = hidden.shape[:-1]
        if self.index is None:
            per_sample, rest = divmod(hidden.shape[0], self.count)
            if rest:
                raise RoutingError(
                    f"samples({self.count}) was given, and site {site} sees {hidden.shape[0]} rows, which do "
                    "not divide into so many equal parts. Give the sample of each row as a tensor."
                )
            axis = torch.arange(self.count, device=hidden.device).repeat_interleave(per_sample)
        else:
            axis = self.index.to(hidden.device)
        if axis.dim() > len(around) or axis.shape != around[: axis.dim()]:
            raise RoutingError(
                f"samples got an index of shape {tuple(axis.shape)}, but site {site} sees {tuple(around)} "
                "rows. It must cover the first axes of what every site sees; where sites see different rows, "
                "give the number of samples instead."
            )
        whole = axis.reshape(*axis.shape, *[1] * (len(around) - axis.dim())).expand(around)
        return SampleGroups(whole.reshape(-1), self.count)


def keeps(hidden: Tensor, index: Tensor | None) -> bool:
    """Return whether groups may be kept for later sites: not if a graph would own their memory."""
    if traced() or (index is not None and index.is_inference()):
        return False
    return not (hidden.is_cuda and torch.cuda.is_current_stream_capturing())


def whole_numbers(index: Tensor) -> bool:
    """Return whether a tensor has one or two axes of integers from zero up."""
    whole = not index.is_floating_point() and index.dtype != torch.bool and index.dim() in (1, 2)
    return whole and index.numel() > 0 and int(index.min()) >= 0


class BatchSizes:
    """The sizes of axis 0 of the inputs of the running forward, by thread."""

    def __init__(self) -> None:
        """Start outside of any forward."""
        self._now: dict[int, list[frozenset[int]]] = {}
        self._hooks: list[int] = []  # their keys, which a copy of the model has too
        self._layer = ""  # path of a layer that held the pool when it was last looked for

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the running forwards."""
        return {**self.__dict__, "_now": {}}

    def watch(self, model: nn.Module) -> None:
        """Hook a model, to follow its forwards."""
        begin = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        end = model.register_forward_hook(self._end, always_call=True)
        self._hooks += [begin.id, end.id]

    def unwatch(self, model: nn.Module) -> None:
        """Remove the hooks from a model, or from a copy of it."""
        for held in HOOKS:
            for key in self._hooks:
                getattr(model, held).pop(key, None)

    def check(self, hidden: Tensor, site: str) -> None:
        """Refuse an input whose axis 0 is not the batch.

        Raises:
            RoutingError: says what the site sees and what the model was called with.
        """
        if hidden.dim() == 2:
            raise RoutingError(
                f"granularity='sample' takes axis 0 for the sample, and site {site} sees rows of shape "
                f"{tuple(hidden.shape)} [tokens, d], which may be of several samples. {ADVICE}"
            )
        running = self._now.get(threading.get_ident())
        sizes = running[-1] if running else frozenset()
        if sizes and hidden.shape[0] not in sizes:
            raise RoutingError(
                f"granularity='sample' takes axis 0 for the sample, and site {site} sees {hidden.shape[0]} "
                f"along it, where the model was called with {', '.join(map(str, sorted(sizes)))}: likely "
                "windows or frames in axis 0, or tokens first. "
                f"{doubled(hidden.shape[0], sizes)}{ADVICE}"
            )

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if not self._held_by(model):  # PEFT and diffusers take layers out without saying so
            self.unwatch(model)
            return
        sizes = frozenset(first_axes((*args, *kwargs.values())))
        self._now.setdefault(threading.get_ident(), []).append(sizes)

    def _held_by(self, model: nn.Module) -> bool:
        """Return whether the pool is still in a model; only the first call walks over the model."""
        layer: nn.Module | None = model
        for part in self._layer.split("."):
            layer = layer._modules.get(part) if layer is not None else None
        if layer is not None and self._is_of(layer):
            return True
        self._layer = next((path for path, module in model.named_modules() if self._is_of(module)), "")
        return bool(self._layer)

    def _is_of(self, module: nn.Module) -> bool:
        sites = vars(module).get("sites")
        owned = sites.values() if isinstance(sites, dict) else ()
        return any(getattr(getattr(site, "pool", None), "batch_sizes", None) is self for site in owned)

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        running = self._now.get(threading.get_ident(), [])
        del running[-1:]
        if not running:
            self._now.pop(threading.get_ident(), None)


def doubled(rows: int, sizes: frozenset[int]) -> str:
    """Return the advice for a batch that the model itself doubles; empty where rows are not twice a size."""
    if not any(rows == 2 * size for size in sizes):
        return ""
    return (
        "If the model doubles its batch, as for classifier-free guidance, each row is a sample: `with "
        f"weave.samples({rows})`, which is samples(2 * B) for a batch of B. "
    )


def first_axes(values: Any) -> Iterator[int]:
    """Iterate over the sizes of axis 0 of all tensors in arguments; a list of tensors may be a batch, too."""
    for value in values:
        if isinstance(value, Tensor):
            yield from value.shape[:1]
        elif isinstance(value, Mapping):
            yield from first_axes(value.values())
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            yield len(value)
            yield from first_axes(value)


def refuse_tokens(granularity: str) -> None:
    """Refuse an index of samples where every token is routed by itself.

    Raises:
        ConfigError: says so.
    """
    if granularity != "sample":
        raise ConfigError(
            f"samples says which rows are of one sample, and this pool has granularity={granularity!r}: "
            "every token is routed by itself. Leave it out, or inject with granularity='sample'."
        )
