"""The handle of a model with experts: inject, grow, record, recall, save, eject. It delegates downwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prw.config import PoolSettings
from prw.errors import ConfigError, PoolError, first_few
from prw.handle import EMPTY, Exchange, Life
from prw.layers import AddsLosses, name_unreached
from prw.layers.samples import Samples, refuse_tokens
from prw.routing import Routing
from prw.storage import load_pool
from prw.tuner import (
    PrwConfig,
    changed_since,
    folded,
    inner_model,
    limited,
    put_in,
    refuse_fixed,
    refuse_no_model,
    refuse_outside,
    take_out,
    trainable_parameters,
    trained_beside,
)


class Weave(Life, Exchange, AddsLosses):
    """The handle of a model that has a pool of experts; `prw.inject` and `prw.load` give one.

    `Weave(model)` gives one for a model that got its pool through PEFT, transformers or diffusers.

    Attributes:
        model: The model, changed in place; of a compiled or wrapped one, the model inside.
        adapter: Name of the PEFT adapter that the pool is.
    """

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List exactly what an optimiser should get: of the pool, and what else of the base was unfrozen.

        A classification head, or whatever requires a gradient and is no other adapter's, comes after the
        pool's own. Of the pool there is nothing after `freeze()`.

        Raises:
            PoolError: if the pool has no experts, or is switched off or loaded for inference.
        """
        if not self.experts:
            raise PoolError(EMPTY)
        ours = trainable_parameters(self._layers(), self.adapter, self.config)
        return [*ours, *trained_beside(self.model, self.adapter).values()]

    @contextmanager
    def record(self) -> Iterator[Routing]:
        """Collect the decisions of the forwards inside a `with` block, each once, recomputed ones not at all.

        A site that a training forward does not reach is named in a warning, once.

        Raises:
            PoolError: if the pool has no experts, or is being recorded already.
        """
        if not self.experts:
            raise PoolError(EMPTY)
        with self.pool.recording() as routing:
            yield routing
            name_unreached(self.pool, routing)

    @contextmanager
    def route_only(self, mask: Tensor) -> Iterator[None]:
        """Route only some tokens inside a `with` block; the others get the base.

        Under gradient checkpointing, backward() must happen inside the block too.

        Args:
            mask: Which tokens are routed, bool of shape [batch, tokens]; the tokens that every site sees.

        Raises:
            ConfigError: if the mask is not of bools.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = getattr(mask, "dtype", type(mask).__name__)
            raise ConfigError(f"route_only takes a mask of bools, True where routed; got {found}.")
        with self.pool.narrowed(routed=mask):
            yield

    @contextmanager
    def samples(self, index: Tensor | int) -> Iterator[None]:
        """Say which sample each row of a site's input belongs to inside a `with` block.

        With `granularity="sample"` axis 0 is the sample, as in [batch, tokens, d]; where it is seen not to
        be, a forward is refused. For a tower that lays pictures end to end ([tokens, d]) give the
        picture of each token; for windows or frames in axis 0 the number of samples.

        Under gradient checkpointing, backward() must happen inside the block too.

        Args:
            index: The sample of each row, integers from 0 up, of shape [axis 0] or [axis 0, axis 1] of what
                every site sees; or the number of samples, where axis 0 has equally many rows of each, those
                of one sample together.

        Raises:
            ConfigError: if it is neither, or every token is routed by itself.
        """
        refuse_tokens(self.settings.granularity)
        device = next(self.model.parameters()).device
        with self.pool.narrowed(samples=Samples.checked(index, device)):
            yield

    @contextmanager
    def as_of(self, name: str) -> Iterator[None]:
        """Use the pool as it was when an expert's stage ended, inside a `with` block: bit for bit.

        That is the stage's model if nothing beside the pool has been trained since; what has is named in a
        warning. Checksums and copies of frozen weights are kept until torch counts a change, and a write to
        `p.data` is not counted: write to `p` under `torch.no_grad()`, or call
        `torch.autograd.graph.increment_version(p)` after it.

        Raises:
            PoolError: if there is no such expert, or was none yet as of a block around this one, or if
                veterans' router vectors go on training.
        """
        if self.settings.train_veteran_gates:
            raise PoolError(
                "with train_veteran_gates=True the router of an earlier stage has been trained on, so as_of "
                "cannot give that stage's model. Load its own checkpoint, or keep veteran gates frozen."
            )
        size, around = self.pool.index(name) + 1, self.pool.scope.size
        if around is not None and size > around:
            raise PoolError(
                f"this is inside `with weave.as_of({self.experts[around - 1]!r})`, and that pool had no "
                f"{name!r} yet. Leave that block first."
            )
        changed = changed_since(self.model, self.adapter, self.config, self.experts[size - 1])
        if changed:
            warnings.warn(
                f"as_of({name!r}) gives the pool as that stage left it, but {len(changed)} parameters beside "
                f"it have been trained since ({first_few(changed)}), so this is not that stage's model. Keep "
                "theirs of each stage and put them back meanwhile, or train the pool alone.",
                stacklevel=3,
            )
        with self.pool.narrowed(size=size):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Use the model without experts inside a `with` block: bit-equal to the frozen base."""
        with self.pool.narrowed(disabled=True):
            yield

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Let base and experts be one weight inside a `with` block, where no weight depends on the input.

        The same outputs to a rounding, without gradients, at the base's cost for routed tokens and with a
        copy of each projection's weight. The base's own weights are not touched: tokens that are not routed
        get them, and what asks for something else inside (`record`, `as_of`, another strength, gradients)
        goes the usual way. Experts must not be trained or loaded meanwhile.

        Raises:
            UnsupportedError: if the router depends on the input, the base is quantised or 16-bit, or is
                offloaded leaf by leaf; says why.
            PoolError: if the pool is empty, switched off, or folded already.
        """
        with folded(self._layers(), self.adapter):
            yield

    def eject(self) -> None:
        """Take the pool out: every projection is the very module that was there before injection.

        Raises:
            UnsupportedError: if PEFT wrapped the model.
        """
        self._layers()
        take_out(self.model, self.adapter, self._trained_before)


def inject(
    model: nn.Module,
    target: str | Iterable[str] = "kv",
    experts: Iterable[str] = (),
    *,
    exclude: str | Iterable[str] = (),
    layers: int | Iterable[int] | None = None,
    layout: str | None = None,
    adapter: str = "default",
    **settings: Any,
) -> Weave:
    """Give a model a pool of experts, in place; what it computes is bit-equal to the frozen base.

    Frozen, because torch chooses some products by whether a weight requires a gradient, and on some CPUs the
    two round differently: compare with the model after `model.requires_grad_(False)`.

    Args:
        model: Any model with attention; see docs/supported-models.md.
        target: "kv", "k" or "v" of each attention's main stream, "all-kv" of every stream (the text's of a
            joint attention too), or names, globs or regular expressions of projections.
        experts: Names of experts to start with; usually none.
        exclude: Projections to leave out, or modules with all below them: names, globs, patterns.
        layers: Only layers with these indices.
        layout: How a projection that makes keys and values is laid out, where the model does not tell.
        adapter: Name of the PEFT adapter.
        **settings: Fields of `PoolSettings`: rank, alpha, granularity, gate, share, noise, ...

    Returns:
        The handle. The base's parameters are frozen; `eject()` undoes that too.

    Raises:
        ConfigError: if a setting is unknown or cannot be used, or `experts` is no list of names.
        TargetError: if a target, `exclude` or `layers` matches nothing; lists what is there.
        PoolError: if the model has an adapter of that name already.
        UnsupportedError: if PEFT, DDP, FSDP or DeepSpeed wraps the model.
    """
    refuse_no_model(model)
    refuse_fixed(model)
    model = inner_model(model)  # the one whose paths are named below
    PoolSettings.checked(**settings)
    names: Any
    targets, names = (value if isinstance(value, str) else list(value) for value in (target, experts))
    settings = {"layout": layout, **limited(model, exclude, layers), **settings}
    config = PrwConfig(target_modules=targets, experts=names, **settings)
    refuse_outside(model, config)
    return Weave(model, adapter, put_in(model, config, adapter))


def load(model: nn.Module, path: str | Path, *, adapter: str = "default") -> Weave:
    """Give a model the pool of a folder, or put an earlier stage into the larger pool it has.

    PEFT saves embeddings that were resized with the pool. They replace the base's, of which they are then a
    part that `eject` keeps; a model with a larger pool keeps its own, and a warning says if those differ.

    Args:
        model: The base model, or one that has a pool whose first experts are the folder's.
        path: Folder written by `save_pretrained`.
        adapter: Name of the PEFT adapter.

    Raises:
        StorageError: if the folder is missing, damaged, foreign or does not fit; the model is untouched then.
        TargetError: if it is no torch model, as a pipeline.
    """
    refuse_no_model(model)
    return Weave(model, adapter, load_pool(model, Path(path), adapter))
