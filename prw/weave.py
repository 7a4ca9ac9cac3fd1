"""The handle of a model with experts: inject, grow, train, record, recall, save, merge, eject."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prw import storage, tuner
from prw.config import PoolSettings
from prw.errors import ConfigError, PoolError, first_few
from prw.layers import AddedLoss, AuxiliaryLoss, Pool, SiteRecord, describe_kernel, name_unreached
from prw.layers.samples import Samples, refuse_tokens
from prw.routing import Routing
from prw.storage import Layout, LoraExport, LoraImport
from prw.summary import describe
from prw.tuner import PrwConfig, PrwLinear

EMPTY = 'the pool is empty, so nothing can train or be routed: call weave.add_expert("name") first.'


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
    """Give a model a pool of experts, in place; its output is bit-equal to that of the frozen base.

    Compare with the model after `model.requires_grad_(False)`: torch chooses some matrix products by whether
    a weight requires a gradient, and on some CPUs the two round differently.

    Args:
        model: Any model with attention; see docs/supported-models.md.
        target: "kv", "k" or "v" of each attention's main stream, "all-kv" of every stream (the text stream of
            a joint attention too), or names, globs or regular expressions of projections.
        experts: Names of experts to start with; usually none.
        exclude: Projections to leave out, or modules with everything below them: names, globs, patterns.
        layers: Only layers with these indices.
        layout: How a projection that makes both keys and values is laid out, where the model does not say.
        adapter: Name of the PEFT adapter.
        **settings: Fields of `PoolSettings`: rank, alpha, granularity, gate, share, noise, ...

    Returns:
        The handle. The base's parameters are frozen; `eject()` undoes that too.

    Raises:
        ConfigError: if a setting is unknown or has an unusable value, or `experts` is not a list of names.
        TargetError: if a target, `exclude` or `layers` matches nothing; lists what the model has.
        PoolError: if the model already has an adapter of that name.
        UnsupportedError: if PEFT, DDP, FSDP or DeepSpeed wraps the model.
    """
    model = tuner.model_for_pool(model)  # the one whose paths are named below
    PoolSettings.checked(**settings)  # names every unknown one, which PEFT's dataclass would not
    names: Any = experts if isinstance(experts, str) else list(experts)
    config = PrwConfig(
        target_modules=target if isinstance(target, str) else list(target),
        exclude_modules=tuner.excluded_paths(model, exclude) or None,
        layers_to_transform=layers if layers is None or isinstance(layers, int) else list(layers),
        layout=layout,
        experts=names,
        **settings,
    )
    tuner.refuse_outside(model, config)
    tuner.put_in(model, config, adapter)
    return Weave(model, adapter)


def load(model: nn.Module, path: str | Path, *, adapter: str = "default") -> Weave:
    """Load a saved pool into a model, or an earlier stage into the larger pool that the model has.

    PEFT saves resized embeddings together with the pool. They replace those of the base and stay after
    `eject`; a model with a larger pool keeps its own, with a warning if the two differ.

    Args:
        model: The base model, or one that has a pool whose first experts are the folder's.
        path: Folder written by `save_pretrained`.
        adapter: Name of the PEFT adapter.

    Raises:
        StorageError: if the folder is missing, damaged, foreign or does not fit; the model is unchanged then.
        TargetError: if it is not a torch model but, say, a pipeline.
    """
    tuner.refuse_no_model(model)
    storage.load_pool(model, Path(path), adapter)
    return Weave(model, adapter)


class Weave:
    """The handle of a model that has a pool of experts; `prw.inject` and `prw.load` return one.

    `Weave(model)` gives one for a model that got its pool through PEFT, transformers or diffusers. Every call
    looks the pool up in the model, since it may have been taken out meanwhile.

    Attributes:
        model: The model, changed in place; of a compiled or wrapped one, the model inside.
        adapter: Name of the PEFT adapter that holds the pool.
    """

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        """Make a handle of a pool that a model has.

        Args:
            model: The model, or what torch.compile or a parallel wrapper made of it.
            adapter: Name of the PEFT adapter that holds the pool.

        Raises:
            PoolError: if the model has no pool under that adapter name.
            TargetError: if it is not a torch model.
        """
        tuner.refuse_no_model(model)
        self.model = tuner.inner_model(model)
        self.adapter = adapter
        self._layers()
        self._trained_before = tuner.trained_before(self.model)  # kept, so that a copy of the handle has it

    @property
    def pool(self) -> Pool:
        """The state that all sites share: settings, names, and what the open `with` blocks ask for."""
        return tuner.find_pool(self.model, self.adapter)

    @property
    def config(self) -> PrwConfig:
        """The PEFT configuration of the pool."""
        tuner.find_pool(self.model, self.adapter)  # raises where the pool is gone
        configs: Any = self.model.peft_config
        return configs[self.adapter]  # type: ignore[no-any-return]

    @property
    def settings(self) -> PoolSettings:
        """The pool's settings."""
        return self.pool.settings

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, oldest first."""
        return self.pool.experts

    @property
    def frozen(self) -> bool:
        """Whether the newest expert is frozen too, as after the end of its stage."""
        return self.config.newest_frozen

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """The attention blocks with experts, in the model's order."""
        return tuple(site.describe() for site in self.pool.sites)

    def _layers(self) -> dict[str, PrwLinear]:
        return tuner.pool_layers(self.model, self.adapter)

    # ------------------------------------------------------------------------------------------- growth

    def add_expert(self, name: str, init: str | None = None) -> None:
        """Freeze the experts there are and add one that trains.

        Args:
            name: Name of the expert; usually that of its stage.
            init: None or "zero" starts at zero output, so that nothing but the router's softmax changes. The
                name of a veteran starts from a copy of its A and B, with its ranks.

        Raises:
            ConfigError: if the name is unusable or taken.
            PoolError: if `init` names no expert.
        """
        self._note_stage_end()
        tuner.grow(self._layers(), self.adapter, self.config, name, init)

    def freeze(self) -> None:
        """Freeze the newest expert too: its stage has ended, and nothing trains until an expert is added."""
        self._note_stage_end()
        tuner.freeze_newest(self._layers(), self.adapter, self.config)

    def rename_expert(self, old: str, new: str) -> None:
        """Rename an expert; its place, its weights and whether it trains do not change.

        Folders saved earlier keep the old name: they load into a fresh model, but no longer count as an
        earlier stage of this pool. A `Curriculum` finds its stages by name, so rename its stage as well.

        Raises:
            PoolError: if there is no expert `old`.
            ConfigError: if `new` is unusable or taken.
        """
        tuner.rename(self._layers(), self.adapter, self.config, old, new)

    def remove_expert(self, name: str) -> None:
        """Take an expert out of the pool, together with its router vectors.

        The others keep their order, weights and logits; later ones move up a place. What went to the expert
        goes to the likeliest of the rest, and with `gate="prob"` the rest weigh more. If it was the newest,
        nothing trains until an expert is added; otherwise the newest goes on training.

        `as_of` an earlier expert is unaffected. `as_of` a later one is that stage's model without this
        expert. Folders saved while the pool had it load into a fresh model only.

        Raises:
            PoolError: if the pool has no such expert, or one of its `with` blocks is open.
        """
        tuner.remove(self._layers(), self.adapter, self.config, name)

    def _note_stage_end(self) -> None:
        """Note what trained beside the newest expert, if its stage ends only now."""
        if self.experts and not self.frozen:
            tuner.note_beside(self.model, self.adapter, self.config)

    # ----------------------------------------------------------------------------------------- training

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List exactly what an optimiser should get: the pool's parameters, then whatever else was unfrozen.

        That is a classification head, or anything else that requires a gradient and belongs to no other
        adapter. After `freeze()` the pool itself contributes nothing.

        Raises:
            PoolError: if the pool has no experts, is switched off, or was loaded for inference.
        """
        self._refuse_empty()
        ours = tuner.trainable_parameters(self._layers(), self.adapter, self.config)
        return [*ours, *tuner.parameters_beside(self.model, self.adapter).values()]

    def add_to_loss(self, loss: AuxiliaryLoss, mask: str | None = None) -> AddedLoss:
        """Add a loss of the recorded decisions to `outputs.loss` of every training forward of the model.

        Each forward is recorded once, also under gradient checkpointing. Nothing is added in evaluation mode,
        inside `weave.disabled()`, or where no site decides: the adapter is switched off, or the batch does
        not use the blocks with experts. A warning names, once, every site that a training forward does not
        reach. Inside `with weave.record()` a training forward is refused, since it is being recorded already.
        Under gradient accumulation by a Hugging Face Trainer the loss is weighted by the forward's part of
        the batch.

        Args:
            loss: Takes the `Routing` of one forward and returns a scalar; it is also given `mask=` if the
                forward has the argument named below. For example
                `functools.partial(prw.veteran_loss, rho=0.8, alpha=0.5)`.
            mask: Name of the forward's keyword argument that says which tokens count, such as
                "attention_mask"; None, or a forward without it, counts every routed token.

        Returns:
            A handle that removes the loss again; also a context manager.

        Raises:
            ConfigError: if the loss is not a function, or the forward has no argument of the mask's name.
            RoutingError: in the forward, if its output or the loss is not a scalar.
            PoolError: in the forward, if it is being recorded already.
        """
        return AddedLoss(self.model, self.pool, loss, mask)

    def _refuse_empty(self) -> None:
        if not self.experts:
            raise PoolError(EMPTY)

    # -------------------------------------------------------------------------------------- with blocks

    @contextmanager
    def record(self) -> Iterator[Routing]:
        """Record the decisions of the forwards inside a `with` block, each once and recomputed ones never.

        A warning names, once, every site that a training forward does not reach.

        Raises:
            PoolError: if the pool has no experts, or is being recorded already.
        """
        self._refuse_empty()
        with self.pool.recording() as routing:
            yield routing
            name_unreached(self.pool, routing)

    @contextmanager
    def route_only(self, mask: Tensor) -> Iterator[None]:
        """Route only some tokens inside a `with` block; the others get the base.

        Under gradient checkpointing, call backward() inside the block too.

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
        """Declare inside a `with` block which sample each row of a site's input belongs to.

        With `granularity="sample"` axis 0 is the sample, as in [batch, tokens, d]; a forward in which it
        visibly is not is refused. For images laid end to end ([tokens, d]) give the image of each token; for
        windows or frames in axis 0 the number of samples.

        Under gradient checkpointing, call backward() inside the block too.

        Args:
            index: The sample of each row, integers from 0 up, of shape [axis 0] or [axis 0, axis 1] of what
                every site sees; or the number of samples, where axis 0 has equally many rows of each and
                those of one sample follow each other.

        Raises:
            ConfigError: if it is neither, or the pool routes tokens one by one.
        """
        refuse_tokens(self.settings.granularity)
        device = next(self.model.parameters()).device
        with self.pool.narrowed(samples=Samples.checked(index, device)):
            yield

    @contextmanager
    def as_of(self, name: str) -> Iterator[None]:
        """Use the pool inside a `with` block as it was when an expert's stage ended, bit for bit.

        That is the stage's model if nothing beside the pool has been trained since; otherwise a warning names
        what has. Checksums and copies of frozen weights are kept until torch counts a change, and torch does
        not count a write to `p.data`: write to `p` under `torch.no_grad()`, or call
        `torch.autograd.graph.increment_version(p)` after it.

        Raises:
            PoolError: if there is no such expert, if a block around this one recalls a pool without it, or if
                the router vectors of veterans go on training.
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
        changed = tuner.changed_since(self.model, self.adapter, self.config, self.experts[size - 1])
        if changed:
            warnings.warn(
                f"as_of({name!r}) gives the pool as that stage left it, but {len(changed)} parameters beside "
                f"it have been trained since ({first_few(changed)}), so this is not that stage's model. "
                "Save them at the end of each stage and restore them for as_of, or train the pool alone.",
                stacklevel=3,
            )
        with self.pool.narrowed(size=size):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Use the model without experts inside a `with` block: bit-equal to the frozen base."""
        with self.pool.narrowed(disabled=True):
            yield

    # ---------------------------------------------------------------------------------- export, import, save

    def save_pretrained(self, path: str | Path) -> None:
        """Save the pool as a PEFT folder: adapter_config.json, adapter_model.safetensors, README.md.

        The folder appears whole or not at all; other files in it are kept. Where FSDP2 has split the weights,
        every process calls this, and rank 0 writes the file that one process would write. What trains beside
        the pool, such as an unfrozen classification head, is not saved; a warning names it.

        Raises:
            StorageError: if `path` is a file.
            UnsupportedError: if the configuration has `modules_to_save`, which only PEFT saves.
        """
        storage.save_pool(Path(path), self._layers(), self.adapter, self.config)
        beside = list(tuner.parameters_beside(self.model, self.adapter))
        if beside:
            warnings.warn(
                f"{len(beside)} parameters train beside the pool ({first_few(beside)}) and are not in "
                f"{path}, which holds the pool alone. Save them with your checkpoint, or freeze them.",
                stacklevel=2,
            )

    def export_lora(
        self, name: str, path: str | Path, *, layout: Layout = "peft", measure: Any = None
    ) -> LoraExport:
        """Save one expert as a plain LoRA, for use without prw.

        The LoRA has no router: it acts on every token with weight one, where the pool weights the expert by
        its probability (unless `gate="unit"`) and only where it was chosen. The folder's README says so.

        Args:
            name: Name of the expert.
            path: Folder to write.
            layout: "peft" for `PeftModel.from_pretrained`; "diffusers" for `pipe.load_lora_weights` and
                `model.load_lora_adapter(path, prefix="transformer", use_safetensors=True)` ("unet" for a
                UNet), with the scale folded into B.
            measure: Inputs to measure the difference on, without gradients, noise or dropout: a mapping of
                the model's keyword arguments, its one argument, or a function that runs the model. None
                measures nothing.

        Returns:
            The report.

        Raises:
            PoolError: if the pool has no such expert, or `measure` is given inside a `record()` block.
            ConfigError: if there is no such layout.
            StorageError: if the folder holds another kind of adapter, such as the pool itself.
            UnsupportedError: if `measure` is given and a site is an nn.MultiheadAttention.
        """
        return storage.export_lora(
            self.model, self._layers(), self.adapter, self.config, name, Path(path), layout, measure
        )

    def import_lora(
        self, source: str | Path | Mapping[str, Tensor], name: str, *, strict: bool = False
    ) -> LoraImport:
        """Add a plain LoRA as an expert: a veteran with frozen A and B of its own ranks; its router trains.

        Only its weights at the pool's projections are used, with its scale (alpha, rslora, patterns) folded
        into B.

        Args:
            source: A PEFT folder; a safetensors file of diffusers or kohya, or a folder with diffusers'; or
                weights by name, as a pipeline's own `lora_state_dict` gives them: `FluxPipeline.
                lora_state_dict(file)` for a FLUX model, `StableDiffusionPipeline` for its UNet.
            name: Name of the expert.
            strict: Whether to refuse a LoRA that adapts anything else, instead of reporting it.

        Returns:
            The report: ranks, what was dropped, which projections the LoRA does not adapt.

        Raises:
            StorageError: if it is not a plain LoRA or does not fit; nothing has changed then.
            ConfigError: if the name is unusable or taken.
        """
        layers = self._layers()
        pairs, report = storage.fit_lora(storage.read_foreign(source), layers, self.adapter, name, strict)
        ranks = storage.rank_pattern(report, layers, self.settings)
        self._note_stage_end()
        tuner.grow(layers, self.adapter, self.config, name, ranks=ranks)
        storage.place_lora(pairs, layers, self.adapter, self.pool.index(name))
        self.config.imported = [*self.config.imported, self.experts[-1]]
        tuner.refresh_training(layers, self.adapter, self.config)
        return report

    # ------------------------------------------------------------------------------------- merge, eject

    def merge(self, as_of: str | None = None) -> None:
        """Fold the pool into the base's weights and take it out: the same outputs up to rounding, at no cost.

        That is exact only where no weight depends on the input: a pool of one expert; the pool as of its
        first; or `gate="unit"` with `top_k` of at least the pool's size, where every expert always acts.

        Args:
            as_of: Merge the pool as it was when this expert's stage ended; later experts are lost, so save
                first. None merges all of it.

        Raises:
            UnsupportedError: if it would not be exact: the router depends on the input, the base is quantised
                or 16-bit, PEFT wraps the model, ...; says why, and nothing has changed.
            PoolError: if the pool is empty, has no such expert, is switched off, or a `with` block is open.
        """
        self._refuse_empty()
        size = len(self.experts) if as_of is None else self.pool.index(as_of) + 1
        tuner.merge(self.model, self._layers(), self.adapter, size, self._trained_before)

    def eject(self) -> None:
        """Take the pool out: every projection is the very module that was there before injection.

        Raises:
            UnsupportedError: if PEFT wrapped the model.
        """
        self._layers()
        tuner.take_out(self.model, self.adapter, self._trained_before)

    def summary(self) -> str:
        """Describe the pool: sites, experts, settings, kernel and why, parameters, bytes."""
        layers = self._layers()
        parameters = list(storage.pool_parameters(layers, self.adapter).values())
        kernel = describe_kernel(next(iter(layers.values())).sites[self.adapter])
        return describe(type(self.model).__name__, self.config, self.sites, parameters, kernel)
