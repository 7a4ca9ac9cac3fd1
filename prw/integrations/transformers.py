"""A callback that takes the stock Hugging Face Trainer through a curriculum, one Trainer per stage.

A new expert means new parameters, and a Trainer gives its optimiser, its schedule and its distributed wrapper
the parameters that there are when `train()` begins. So each stage has a Trainer of its own, made after the
stage's expert was added; a Trainer that is used for a second stage is refused.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import prw.integrations.checkpoints as disk
from prw.curriculum import Curriculum, Stage
from prw.errors import CurriculumError
from prw.layers import AddedLoss
from prw.losses import veteran_loss
from prw.routing import Routing, RoutingStatistics, Tally, statistics_of
from prw.weave import Weave

logger = logging.getLogger(__name__)


class PrwCallback(TrainerCallback):
    """Walks a curriculum with the stock Trainer: adds experts and the veteran loss, logs shares, resumes.

    Args:
        weave: The pool; its model is the one that is trained, plain or wrapped by PEFT.
        curriculum: The stages.
        output_dir: Folder of the run; each stage gets a folder in it, with the Trainer's checkpoints and, at
            its end, the pool.
        mask: Name of the model's argument that says which tokens count in the veteran loss and in what is
            logged; None, or a batch without it, counts every routed token.
        seed: Seed of each new expert's start, with the stage's position added, so that a run that was
            interrupted between two stages goes on as if it had not been.
        collapse: Share of a site's items from which one expert is reported to have taken the site.

    Attributes:
        stage: The stage whose turn it is; None outside of `stages()`.
        checkpoint: What `Trainer.train(resume_from_checkpoint=...)` is to get for this stage, or None.
        statistics: The routing since the previous log, as of the last log.
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
        """Take hold of the pool; nothing is changed before `stages()`."""
        self.weave = weave
        self.curriculum = curriculum
        self.output_dir = Path(output_dir)
        self.stage: Stage | None = None
        self.checkpoint: str | None = None
        self.statistics: RoutingStatistics | None = None
        self._mask, self._seed, self._collapse = mask, seed, collapse
        self._added: AddedLoss | None = None
        self._tally: Tally | None = None
        self._losses: list[Tensor] = []

    @property
    def arguments(self) -> dict[str, Any]:
        """What the stage settles of `TrainingArguments`: output_dir, max_steps and learning_rate.

        Raises:
            CurriculumError: outside of `stages()`.
        """
        stage = self._current()
        folder = str(self.output_dir / stage.name)
        return {"output_dir": folder, "max_steps": stage.steps, "learning_rate": stage.lr}

    def stages(self, resume: bool = False) -> Iterator[Stage]:
        """Go through the stages; make a Trainer for each, with `arguments`, and let it train.

        Args:
            resume: Whether to go on with the run in `output_dir`, where there is one: the pool takes over its
                experts, and `checkpoint` is what the first Trainer resumes from.

        Raises:
            CurriculumError: if the folder holds a run and is not to be resumed, the run is not of this
                curriculum, or a stage was left before its last step.
            StorageError: if the run's latest pool cannot be read.
        """
        self.checkpoint = self._catch_up(resume)
        walk = self.curriculum.stages(self.weave)
        try:
            while (stage := self._next(walk)) is not None:
                self.stage = stage
                yield stage
                self._check_finished(stage)
                self.checkpoint = None
        finally:
            self.stage = None
            self._let_go()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that this Trainer trains this stage, and begin to add the veteran loss."""
        stage = self._current()
        self._check_arguments(args)
        check_model(self.weave.model, kwargs["model"])
        check_optimizer(kwargs["optimizer"], self.weave, stage)
        done = self.curriculum.done(self.weave)
        if state.global_step != done:
            raise CurriculumError(
                f"the pool has {done} steps of stage {stage.name!r} behind it, and the Trainer begins at step "
                f"{state.global_step}. Call trainer.train(resume_from_checkpoint=callback.checkpoint) inside "
                "`for stage in callback.stages(resume=True)`."
            )
        self._let_go()
        loss = functools.partial(self._measured_loss, stage)
        self._added = self.weave.add_to_loss(loss, mask=self._mask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down that the stage has one more step behind it."""
        self.curriculum.advance(self.weave)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the pool into a checkpoint that has it among a whole model's weights only."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and disk.pool_in(checkpoint, self.weave.adapter) is None:
            self.weave.save_pretrained(checkpoint / self.weave.adapter)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the routing since the previous log to the log, for `log_history` and the callbacks after this."""
        if self._tally is None or logs is None or "loss" not in logs:
            return
        self.statistics = statistics_of(self._tally)
        measured = self._measured(self.statistics)
        logs.update(measured)
        state.log_history[-1].update(measured)
        self._tally, self._losses = None, []

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop adding the loss; after the stage's last step, freeze its expert and save the pool."""
        self._let_go()
        stage = self._current()
        if self.curriculum.done(self.weave) == stage.steps:
            self.weave.freeze()
            if state.is_world_process_zero:
                self.weave.save_pretrained(self.output_dir / stage.name)

    def _measured_loss(self, stage: Stage, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """Compute the veteran loss and keep what is logged of the forward, all of it on the device."""
        loss = veteran_loss(routing, stage.rho, stage.alpha, mask=mask)
        self._tally = routing.tally(mask).plus(self._tally)
        self._losses.append(loss.detach())
        return loss

    def _measured(self, statistics: RoutingStatistics) -> dict[str, float]:
        """Say what is logged, and warn of sites that have collapsed."""
        collapsed = statistics.collapsed(self._collapse, self._current().rho)
        if collapsed:
            first = collapsed[0]
            logger.warning(
                "%d of %d sites send %.0f %% or more of their items to one expert; the first is %s, %.0f %% to %s",
                len(collapsed),
                len(statistics.sites),
                100 * self._collapse,
                first.site,
                100 * first.share,
                f"the {'newest' if first.newest else 'veteran'} {first.expert}",
            )
        return {
            "prw/share": statistics.share,
            "prw/veteran_loss": float(torch.stack(self._losses).mean()),
            "prw/gate": statistics.gate,
            "prw/entropy": statistics.entropy,
            "prw/margin": statistics.margin,
            "prw/collapsed_sites": float(len(collapsed)),
        }

    def _next(self, walk: Iterator[Stage]) -> Stage | None:
        """Go on to the next stage; its expert starts the same way in every process and after every break."""
        torch.manual_seed(self._seed + len(self.weave.experts))
        return next(walk, None)

    def _catch_up(self, resume: bool) -> str | None:
        """Bring the pool to where the run is; gives the checkpoint that its Trainer resumes from."""
        bad = [name for name in self.curriculum.names if Path(name).name != name or name in (".", "..")]
        if bad:
            raise CurriculumError(f"stages get folders of their names, and {bad[0]!r} cannot be one. Rename it.")
        progress = disk.latest(self.output_dir, self.curriculum.names, self.weave.adapter)
        if progress is None:
            return None
        if not resume:
            raise CurriculumError(
                f"{self.output_dir} holds a run already ({progress.checkpoint or progress.pool}). Go on with "
                "it by callback.stages(resume=True), or give another output_dir."
            )
        self.curriculum.resume(self.weave, progress.pool)
        if progress.checkpoint is None or self.curriculum.done(self.weave) == self.curriculum[-1 if not self.weave.experts else self.weave.experts[-1]].steps:
            return None
        disk.let_trainer_read(progress.checkpoint, self.weave.model)
        return str(progress.checkpoint)

    def _current(self) -> Stage:
        if self.stage is None:
            raise CurriculumError(
                "no stage is running. Make and run one Trainer per stage inside "
                "`for stage in callback.stages()`."
            )
        return self.stage

    def _check_arguments(self, args: TrainingArguments) -> None:
        """Refuse a Trainer with other arguments than the stage's."""
        wanted = self.arguments
        came = {name: getattr(args, name) for name in wanted}
        wrong = [f"{name}={came[name]!r}, not {value!r}" for name, value in wanted.items() if came[name] != value]
        if wrong:
            raise CurriculumError(
                f"this Trainer does not train stage {self._current().name!r}: it has {'; '.join(wrong)}. Make "
                "one Trainer per stage, with TrainingArguments(**callback.arguments, ...)."
            )

    def _check_finished(self, stage: Stage) -> None:
        """Refuse to go on from a stage that was left early."""
        if not self.weave.frozen:
            done = self.curriculum.done(self.weave)
            raise CurriculumError(
                f"stage {stage.name!r} was left after {done} of {stage.steps} steps. Train on with "
                "callback.stages(resume=True), or call weave.freeze() before going on to end it here."
            )

    def _let_go(self) -> None:
        """Stop adding the loss, and forget what has not been logged."""
        if self._added is not None:
            self._added.remove()
        self._added = self._tally = None
        self._losses = []


def check_model(ours: nn.Module, trained: nn.Module) -> None:
    """Refuse a Trainer of another model.

    Raises:
        CurriculumError: names both.
    """
    if not any(module is ours for module in trained.modules()):
        raise CurriculumError(
            f"the Trainer's model ({type(trained).__name__}) does not contain the weave's "
            f"({type(ours).__name__}), so the loss could not be added. Give both the same model; after "
            "get_peft_model that is what it returned: prw.Weave(peft_model)."
        )


def check_optimizer(optimizer: Any, weave: Weave, stage: Stage) -> None:
    """Refuse an optimiser that does not hold exactly what trains of the pool, as one of an earlier stage.

    Raises:
        CurriculumError: says how many parameters are missing.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in weave.trainable_parameters() if id(parameter) not in held]
    if missing:
        raise CurriculumError(
            f"{len(missing)} parameters of the expert {stage.name!r} are not in the Trainer's optimiser, so "
            "they would not train. A Trainer keeps the optimiser of its first train(): make one Trainer per "
            "stage, inside `for stage in callback.stages()`, and pass it no optimiser made before."
        )
