"""A callback that takes the stock Hugging Face Trainer through a curriculum, one Trainer per stage.

A new expert means new parameters, and a Trainer builds its optimiser, schedule and distributed wrapper from
the parameters that exist when `train()` begins. So each stage has its own Trainer, made after the stage's
expert was added; using one Trainer for a second stage is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prw.curriculum import Curriculum, Stage
from prw.curriculum.ledger import LedgerEntry
from prw.errors import CurriculumError, UnsupportedError, first_few
from prw.integrations.checkpoints import holds_pool, latest, let_trainer_read, pool_in, pools_of_others
from prw.layers import AddedLoss
from prw.losses import veteran_loss
from prw.routing import Collapse, Routing, RoutingStatistics, Tally, statistics_of
from prw.tuner import pool_layers, trainable_parameters
from prw.weave import Weave

logger = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """How a Trainer began: its arguments and its batch size."""

    args: TrainingArguments
    batch_size: int

    def follows(self, last: Attempt | None) -> bool:
        """Say whether `auto_find_batch_size` started again: the same Trainer with a smaller batch.

        After an interruption a Trainer continues with the size it had.
        """
        if last is None or last.args is not self.args or not self.args.auto_find_batch_size:
            return False
        return self.batch_size < last.batch_size


def batch_size_of(batches: Any, state: TrainerState) -> int:
    """Read the batch size of a data loader; a Trainer's own may keep it in its batch sampler.

    Where batches differ in size, as with a sampler that counts tokens, it is the size that the Trainer noted.
    """
    parts = (batches, getattr(batches, "batch_sampler", None))
    sizes = [*(getattr(part, "batch_size", None) for part in parts), state.train_batch_size]
    return next((size for size in sizes if isinstance(size, int)), 0)


class PrwCallback(TrainerCallback):
    """Walks a curriculum with the stock Trainer: adds experts and the veteran loss, logs shares, resumes.

    What is logged is of this process, and the mean over the forwards since the previous log.

    Attributes:
        weave: The pool.
        curriculum: The stages.
        output_dir: Folder of the run.
        stage: The current stage; None outside of `stages()`.
        checkpoint: What to pass to `Trainer.train(resume_from_checkpoint=...)` in this stage, or None.
    """

    def __init__(
        self,
        weave: Weave,
        curriculum: Curriculum,
        output_dir: str | Path,
        *,
        mask: str | None = "attention_mask",
        seed: int = 0,
        collapse: float = 0.95,
    ) -> None:
        """Keep the settings; nothing is changed before `stages()`.

        Args:
            weave: The pool; its model is the one that the Trainers train, plain or wrapped by PEFT.
            curriculum: The stages.
            output_dir: Folder of the run; each stage gets a folder in it, with the Trainer's checkpoints and,
                at its end, the pool.
            mask: Name of the model's argument that says which tokens count in the veteran loss and in what is
                logged; None, or a batch without it, counts every routed token.
            seed: Seed of each new expert's start, with the stage's position added, so that a run that was
                interrupted between two stages goes on as if it had not been.
            collapse: Share of a site's items from which the site is reported as collapsed onto one expert.
        """
        self.weave = weave
        self.curriculum = curriculum
        self.output_dir = Path(output_dir).expanduser()
        self.stage: Stage | None = None
        self.checkpoint: str | None = None
        self._mask, self._seed, self._collapse = mask, seed, collapse
        self._added: AddedLoss | None = None
        self._attempt: Attempt | None = None
        self._meter: RoutingMeter | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The `TrainingArguments` that the stage determines: output_dir, max_steps and learning_rate.

        Raises:
            CurriculumError: outside of `stages()`.
        """
        stage = self._current()
        folder = str(self.output_dir / stage.name)
        return {"output_dir": folder, "max_steps": stage.steps, "learning_rate": stage.lr}

    @property
    def statistics(self) -> RoutingStatistics | None:
        """The routing between the last two logs of the stage, site by site; None before its first log."""
        return None if self._meter is None else self._meter.statistics

    def stages(self, resume: bool = False) -> Iterator[Stage]:
        """Go through the stages; make a Trainer with `arguments` for each, and train it.

        Args:
            resume: Whether to continue the run in `output_dir`, if there is one: the pool gets its experts,
                and `checkpoint` is what the first Trainer resumes from.

        Raises:
            CurriculumError: if the folder holds a run and `resume` is False, if the run is not of this
                curriculum, or if a stage was left before its last step.
            UnsupportedError: if other modules are trained and saved with the pool (modules_to_save).
            StorageError: if the run's latest pool cannot be read.
        """
        self.checkpoint = self._restore(resume)
        walk = self.curriculum.stages(self.weave)
        try:
            while (stage := self._next(walk)) is not None:
                self.stage, self._meter = stage, RoutingMeter(stage, self._collapse)
                yield stage
                self._check_finished(stage)
                self._keep(stage)
                self.checkpoint = None
        finally:
            self.stage = None
            self._let_go()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that this Trainer trains this stage, and start adding the veteran loss.

        Raises:
            CurriculumError: if it does not.
            UnsupportedError: if its checkpoints would be incomplete, or could not be written.
        """
        stage = self._current()
        check_arguments(args, self.arguments, stage)
        check_model(self.weave.model, kwargs["model"])
        check_alone(kwargs["model"], self.weave)
        check_saving(args, kwargs["model"])
        check_optimizer(kwargs["optimizer"], kwargs["model"], self.weave, stage)
        attempt = Attempt(args, batch_size_of(kwargs["train_dataloader"], state))
        if self._added is not None and attempt.follows(self._attempt):
            self._restart(stage, state.global_step)
        check_step(state.global_step, self.curriculum.done(self.weave), stage)
        self._let_go()
        self._attempt = attempt
        self._meter = RoutingMeter(stage, self._collapse)
        self._added = self.weave.add_to_loss(self._meter.loss, mask=self._mask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count one more step of the stage as done."""
        self.curriculum.advance(self.weave)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the pool into a checkpoint that holds it only among a whole model's weights."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and pool_in(checkpoint, self.weave.adapter) is None:
            self.weave.save_pretrained(checkpoint / self.weave.adapter)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the routing to a step's log: for `log_history`, and for the callbacks after this one."""
        if self._meter is not None and logs is not None and "loss" in logs:
            measured = self._meter.read()
            logs.update(measured)
            state.log_history[-1].update(measured)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop adding the loss; after the stage's last step, freeze its expert and save the pool."""
        self._let_go()
        stage = self._current()
        if self.curriculum.done(self.weave) == stage.steps:
            self.weave.freeze()
            self._keep(stage)

    def _restart(self, stage: Stage, step: int) -> None:
        """Follow a Trainer that starts again after an out-of-memory error, with a smaller batch.

        `auto_find_batch_size` repeats the whole loop, from step 0 or from the checkpoint it resumed from,
        without ending the first attempt. It keeps the weights as they are, as it does for any model.
        """
        done = self.curriculum.done(self.weave)
        logger.warning(
            "auto_find_batch_size starts stage %r again at step %d after an out-of-memory error; the %d "
            "steps since then stay in the expert's weights and are not counted.",
            stage.name,
            step,
            done - step,
        )
        LedgerEntry(stage=stage, done=step).write(self.weave)

    def _next(self, walk: Iterator[Stage]) -> Stage | None:
        """Go on to the next stage; its expert starts alike in every process and after every interruption."""
        torch.manual_seed(self._seed + len(self.weave.experts))
        return next(walk, None)

    def _restore(self, resume: bool) -> str | None:
        """Bring the pool to where the run is; returns the checkpoint that its Trainer resumes from."""
        if self.weave.config.modules_to_save:
            raise UnsupportedError(
                f"the pool has modules_to_save={list(self.weave.config.modules_to_save)}, and PrwCallback "
                "carries only the pool itself from one stage or process to the next. Leave it out, or walk "
                "curriculum.stages(weave) and save with PEFT."
            )
        bad = [name for name in self.curriculum.names if Path(name).name != name or name in (".", "..")]
        if bad:
            raise CurriculumError(
                f"each stage gets a folder of its name, and {bad[0]!r} cannot be one. Rename the stage."
            )
        strange = pools_of_others(self.output_dir, self.curriculum.names, self.weave.adapter)
        if strange:
            raise CurriculumError(
                f"{self.output_dir} holds pools of {', '.join(strange)}, which this curriculum "
                f"({', '.join(self.curriculum.names)}) does not have. Put the stages back, or give another "
                "output_dir."
            )
        progress = latest(self.output_dir, self.curriculum.names, self.weave.adapter)
        if progress is None:
            return None
        if not resume:
            raise CurriculumError(
                f"{self.output_dir} holds a run already ({progress.checkpoint or progress.pool}). Continue "
                "it with callback.stages(resume=True), or give another output_dir."
            )
        self.curriculum.resume(self.weave, progress.pool)
        if progress.checkpoint is None:
            return None
        stage = self.curriculum[self.weave.experts[-1]]
        if self.curriculum.done(self.weave) == stage.steps:  # cut off between the last step and its end
            self.weave.freeze()
            self._keep(stage)
            return None
        let_trainer_read(progress.checkpoint, self.weave.model)
        return str(progress.checkpoint)

    def _keep(self, stage: Stage) -> None:
        """Save the pool as this stage leaves it, once, by the first process."""
        folder = self.output_dir / stage.name
        if os.environ.get("RANK", "0") == "0" and not holds_pool(folder):
            self.weave.save_pretrained(folder)

    def _current(self) -> Stage:
        if self.stage is None:
            raise CurriculumError(
                "no stage is running. Make and run one Trainer per stage inside "
                "`for stage in callback.stages()`."
            )
        return self.stage

    def _check_finished(self, stage: Stage) -> None:
        """Refuse to go on from a stage that was left early."""
        if not self.weave.frozen:
            done = self.curriculum.done(self.weave)
            raise CurriculumError(
                f"stage {stage.name!r} was left after {done} of {stage.steps} steps. Train on with "
                "callback.stages(resume=True), or call weave.freeze() before going on to end it here."
            )

    def _let_go(self) -> None:
        """Stop adding the loss."""
        if self._added is not None:
            self._added.remove()
        self._added = None


# ------------------------------------------------------------------------------------ what is logged


class RoutingMeter:
    """Computes the veteran loss of a stage and sums up its routing; reads the device only in `read`.

    Attributes:
        stage: The stage.
        statistics: The routing between the last two calls of `read`; None before the first.
    """

    def __init__(self, stage: Stage, threshold: float) -> None:
        """Start empty.

        Args:
            stage: The stage.
            threshold: Share of a site's items from which the site counts as collapsed onto one expert.
        """
        self.stage = stage
        self.statistics: RoutingStatistics | None = None
        self._threshold = threshold
        self._tally: Tally | None = None
        self._losses: Tensor | float = 0.0
        self._forwards = 0

    def loss(self, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """Compute the veteran loss of one forward, and add its routing to the sums."""
        loss = veteran_loss(routing, self.stage.rho, self.stage.alpha, mask=mask)
        self._tally = routing.tally(mask).plus(self._tally)
        self._losses = self._losses + loss.detach()
        self._forwards += 1
        return loss

    def read(self) -> dict[str, float]:
        """Return the means since the last call and warn of collapsed sites; empty if no forward ran."""
        if self._tally is None:
            return {}
        self.statistics = statistics = statistics_of(self._tally)
        collapsed = statistics.collapsed(self._threshold, self.stage.rho)
        if collapsed:
            logger.warning("%s", collapse_message(collapsed, statistics))
        measured = {
            "prw/share": statistics.share,
            "prw/veteran_loss": float(self._losses) / self._forwards,
            "prw/gate": statistics.gate,
            "prw/entropy": statistics.entropy,
            "prw/margin": statistics.margin,
            "prw/collapsed_sites": float(len(collapsed)),
        }
        self._tally, self._losses, self._forwards = None, 0.0, 0
        return measured


def collapse_message(collapsed: tuple[Collapse, ...], statistics: RoutingStatistics) -> str:
    """Say which sites have collapsed, onto which expert, and whether that is a veteran."""
    newest = statistics.experts[-1]
    shown = ", ".join(
        f"{one.site} ({one.share:.0%} to the {'newest' if one.newest else 'veteran'} {one.expert})"
        for one in collapsed[:3]
    )
    more = f" and {len(collapsed) - 3} more" if len(collapsed) > 3 else ""
    return (
        f"routing has collapsed at {len(collapsed)} of {len(statistics.sites)} sites: {shown}{more}. The "
        f"newest expert {newest} has {statistics.share:.0%} over all sites."
    )


# ---------------------------------------------------------- checks of a Trainer before it trains a stage


def check_arguments(args: Any, wanted: Mapping[str, Any], stage: Stage) -> None:
    """Refuse a Trainer with other arguments than the stage's."""
    wrong = [
        f"{name}={getattr(args, name)!r}, not {value!r}"
        for name, value in wanted.items()
        if getattr(args, name) != value
    ]
    if wrong:
        raise CurriculumError(
            f"this Trainer does not train stage {stage.name!r}: it has {'; '.join(wrong)}. Make one Trainer "
            "per stage, with TrainingArguments(**callback.arguments, ...)."
        )


def check_step(step: int, done: int, stage: Stage) -> None:
    """Refuse a Trainer that begins at another step than the pool is at."""
    if step != done:
        raise CurriculumError(
            f"the pool has {done} steps of stage {stage.name!r} behind it, and the Trainer begins at step "
            f"{step}. Call trainer.train(resume_from_checkpoint=callback.checkpoint) inside "
            "`for stage in callback.stages(resume=True)`."
        )


def check_model(ours: nn.Module, trained: nn.Module) -> None:
    """Refuse a Trainer of another model."""
    if not any(module is ours for module in trained.modules()):
        raise CurriculumError(
            f"the Trainer's model ({type(trained).__name__}) does not contain the weave's "
            f"({type(ours).__name__}), so the loss could not be added. Give both the same model; after "
            "get_peft_model that is what it returned: prw.Weave(peft_model)."
        )


def check_alone(model: nn.Module, weave: Weave) -> None:
    """Refuse to train anything beside the pool: no checkpoint has it, so a resumed run would lose it."""
    layers = pool_layers(weave.model, weave.adapter)
    ours = {id(parameter) for parameter in trainable_parameters(layers, weave.adapter, weave.config)}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    if others:
        raise UnsupportedError(
            f"{len(others)} parameters train beside the pool ({first_few(others)}), and the "
            "checkpoints of PrwCallback hold the pool alone, so a resumed run would lose them. Freeze them "
            "(requires_grad_(False)), or walk curriculum.stages(weave) in a loop that saves them too."
        )


def check_saving(args: Any, model: nn.Module) -> None:
    """Refuse what would fail only at a Trainer's first checkpoint, or at the end of the stage."""
    if isinstance(model, PeftModel) or not getattr(model, "_hf_peft_config_loaded", False):
        return
    active = cast(Any, model).active_adapters()
    if len(active) > 1:
        raise UnsupportedError(
            f"transformers saves a model with one active adapter, and {', '.join(active)} are active. Merge "
            "the others into the base, or wrap the model with get_peft_model(model, prw.PrwConfig(...))."
        )
    if args.load_best_model_at_end:
        raise UnsupportedError(
            "load_best_model_at_end looks for the whole model's weights, and the checkpoints hold the pool "
            "alone. Leave it off, or wrap the model with get_peft_model(model, prw.PrwConfig(...))."
        )


def check_optimizer(optimizer: Any, model: nn.Module, weave: Weave, stage: Stage) -> None:
    """Refuse an optimiser that lacks parameters of the pool that train, such as one of an earlier stage.

    An optimiser that holds copies of its own, like DeepSpeed's, cannot be checked and passes.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in weave.trainable_parameters() if id(parameter) not in held]
    if missing and (not held or any(id(parameter) in held for parameter in model.parameters())):
        raise CurriculumError(
            f"{len(missing)} parameters of the expert {stage.name!r} are not in the Trainer's optimiser, so "
            "they would not train. A Trainer keeps the optimiser of its first train(): make one Trainer per "
            "stage, inside `for stage in callback.stages()`, and pass it no optimiser made before."
        )
