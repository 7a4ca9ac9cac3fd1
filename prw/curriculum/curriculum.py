"""The curriculum: stages in their order, how a pool walks through them, and how it is restored on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

from pydantic import ConfigDict, InstanceOf, RootModel, ValidationError, model_validator

from prw.config import one_form
from prw.curriculum.ledger import LedgerEntry, begin, check_past, steps_done
from prw.curriculum.stages import Stage, read_stages, stages_from, write_stages
from prw.errors import CurriculumError, StorageError, fault_lines
from prw.storage import SavedPool, fill, read_folder
from prw.tuner import grow, pool_layers, refresh_training
from prw.weave import Weave


class Curriculum(RootModel[tuple[InstanceOf[Stage], ...]], Sequence[Stage]):
    """Stages in their order; their names are unique and each starts from zero or from an earlier one."""

    model_config = ConfigDict(frozen=True)

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Check and keep the stages.

        Raises:
            CurriculumError: if there is none, two share a name, or one starts from a later or unknown stage.
        """
        given = (stages,) if isinstance(stages, Stage) else tuple(stages)
        strange = [stage for stage in given if not isinstance(stage, Stage)]
        if strange:
            raise CurriculumError(f"a curriculum is a list of prw.Stage, got {strange[0]!r} in it.")
        try:
            super().__init__(given)
        except ValidationError as error:
            raise CurriculumError(f"{fault_lines(error, type(self))[0]}.") from error

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        """Refuse stages that cannot follow each other."""
        if not self.root:
            raise ValueError("a curriculum needs at least one stage, got none")
        earlier: list[str] = []
        for stage in self.root:
            if stage.name in earlier or stage.name == "zero":
                raise ValueError(f"two stages are called {stage.name!r}, or it is the reserved name 'zero'")
            if stage.init not in (None, "zero", *earlier):
                raise ValueError(
                    f"stage {stage.name!r} starts from {stage.init!r}, which is no earlier stage; earlier "
                    f"ones: {', '.join(earlier) or 'none'}"
                )
            earlier.append(stage.name)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in their order."""
        return tuple(stage.name for stage in self.root)

    def __iter__(self) -> Iterator[Stage]:  # type: ignore[override]  # pydantic's own gives fields
        """Go through the stages."""
        return iter(self.root)

    def __len__(self) -> int:
        """Count the stages."""
        return len(self.root)

    def __contains__(self, stage: object) -> bool:
        """Say whether a stage, or one of that name, is part of it."""
        return stage in self.root or (isinstance(stage, str) and one_form(stage) in self.names)

    @overload
    def __getitem__(self, index: int | str) -> Stage: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Stage, ...]: ...

    def __getitem__(self, index: int | str | slice) -> Stage | tuple[Stage, ...]:
        """Give a stage by position or name, or several by a slice of positions, as a tuple.

        Raises:
            CurriculumError: if no stage has that name.
            IndexError: if there is no such position.
        """
        if not isinstance(index, str):
            return self.root[index]
        index = one_form(index)
        if index not in self.names:
            raise CurriculumError(f"there is no stage {index!r}; stages are {', '.join(self.names)}.")
        return self.root[self.names.index(index)]

    def stages(self, weave: Weave) -> Iterator[Stage]:
        """Walk a pool through the stages: add the stage's expert, freeze the rest, yield the stage.

        It begins where the pool is. A pool whose newest expert still trains is in the middle of that stage,
        which is yielded (again) without adding anything. The stage is finished once all its steps are done or
        `weave.freeze()` was called, which the loop does when it goes on. To save a pool as finished, call
        `weave.freeze()` before saving.

        The settings of a stage are written into the pool's configuration when it begins, and saved with it.

        Raises:
            CurriculumError: if the pool's experts are not the first stages of this curriculum, or were
                trained with other settings than those stages have now.
        """
        self._check_start(weave)
        for position, stage in enumerate(self.root):
            self._check_start(weave)
            if position < len(weave.experts) - 1 or (position < len(weave.experts) and weave.frozen):
                continue
            if position == len(weave.experts):
                weave.add_expert(stage.name, init=stage.init)
            begin(weave, stage)
            if steps_done(weave, stage.name) < stage.steps:
                yield stage
            weave.freeze()

    def done(self, weave: Weave) -> int:
        """Count the steps of the running stage that are done, as counted by `advance`; 0 between stages."""
        running = self._running(weave)
        return 0 if running is None else steps_done(weave, running.name)

    def advance(self, weave: Weave, steps: int = 1) -> None:
        """Count some more steps of the running stage as done; the count is saved with the pool.

        Call it after each optimiser step, before saving, and start the loop at `done(weave)`.

        Args:
            weave: The pool.
            steps: How many steps; at least 1.

        Raises:
            CurriculumError: if no stage is running, or it would have more steps than it should.
        """
        running = self._running(weave)
        if running is None:
            raise CurriculumError(
                f"no stage of this curriculum is running: the pool's experts are "
                f"{', '.join(weave.experts) or 'none'}{', all frozen' if weave.frozen else ''}. Train inside "
                "`for stage in curriculum.stages(weave)`."
            )
        total = steps_done(weave, running.name) + steps
        if steps < 1 or total > running.steps:
            raise CurriculumError(
                f"stage {running.name!r} has {running.steps} steps, and {total - steps} of them are done; it "
                f"cannot advance by {steps}. Loop over range(curriculum.done(weave), stage.steps)."
            )
        LedgerEntry(stage=running, done=total).write(weave)

    def resume(self, weave: Weave, path: str | Path) -> None:
        """Bring a pool forward to a saved one, in the middle of a stage or at its end.

        `prw.load` loads a saved pool into a model without one; this is for a model that already has one,
        empty or at an earlier stage, for example because PEFT wrapped it.

        Args:
            weave: A pool whose experts are the saved one's first ones.
            path: Folder of the saved pool.

        Raises:
            StorageError: if the folder is missing, damaged, or does not fit the model.
            CurriculumError: if the pools have other experts or settings, or the saved one is not of this
                curriculum.
        """
        restore(weave, Path(path))
        self._check_start(weave)

    def to_dict(self) -> dict[str, Any]:
        """Give the stages as plain values, for JSON or YAML."""
        return {"stages": [stage.model_dump() for stage in self.root]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a curriculum of what `to_dict` gave, or of such values from a file.

        Raises:
            CurriculumError: if the values are not of that form.
            ConfigError: if a stage's setting cannot be used.
        """
        return cls(stages_from(values))

    def save(self, path: str | Path) -> None:
        """Write the stages to a JSON file, all or nothing.

        Raises:
            StorageError: if the file cannot be written.
        """
        write_stages(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the stages from a JSON file.

        Raises:
            StorageError: if the file is missing or not JSON.
            CurriculumError: if it holds no stages.
            ConfigError: if a stage's setting cannot be used.
        """
        return cls.from_dict(read_stages(Path(path)))

    def _running(self, weave: Weave) -> Stage | None:
        """Give the stage whose expert trains."""
        newest = weave.experts[-1] if weave.experts and not weave.frozen else None
        return self[newest] if newest in self.names else None

    def _check_start(self, weave: Weave) -> None:
        if weave.experts != self.names[: len(weave.experts)]:
            raise CurriculumError(
                f"the pool's experts ({', '.join(weave.experts)}) are not the first stages of this "
                f"curriculum ({', '.join(self.names)}). Load the pool that belongs to it, or start from an "
                "empty one."
            )
        running = self._running(weave)
        for stage in self.root[: len(weave.experts)]:
            check_past(weave, stage, running=stage is running)


def restore(weave: Weave, path: Path) -> None:
    """Add the experts that a saved pool has more, and load its weights and its ledger.

    Args:
        weave: A pool whose experts are the saved one's first ones; usually an empty one.
        path: Folder of the saved pool.
    """
    saved = read_folder(path)
    check_earlier(weave, saved, path)
    layers, config = pool_layers(weave.model, weave.adapter), weave.config
    frozen, added = config.newest_frozen, saved.config.experts[len(weave.experts) :]
    for name in added:
        grow(layers, weave.adapter, config, name, ranks=saved.config.expert_ranks.get(name))
    try:  # other modules that were trained with the pool are for PEFT to load
        fill(layers, weave.adapter, {name: value for name, value in saved.weights.items() if ".prw_" in name})
    except StorageError:
        for name in added:
            weave.remove_expert(name)
        config.newest_frozen = frozen
        refresh_training(layers, weave.adapter, config)
        raise
    config.imported, config.stages = list(saved.config.imported), dict(saved.config.stages)
    config.trained_beside = dict(saved.config.trained_beside)
    config.newest_frozen = saved.config.newest_frozen
    refresh_training(layers, weave.adapter, config)


def check_earlier(weave: Weave, saved: SavedPool, path: Path) -> None:
    """Refuse a saved pool that is no later state of this one."""
    theirs, ours = tuple(saved.config.experts), weave.experts
    if theirs[: len(ours)] != ours:
        raise CurriculumError(
            f"the pool in {path} has the experts {', '.join(theirs) or 'none'}, and the model's pool begins "
            f"otherwise: {', '.join(ours)}. Start from an empty pool, or from one that was saved earlier."
        )
    if saved.config.settings() != weave.settings:
        raise CurriculumError(
            f"the pool in {path} has other settings than the model's: {saved.config.settings()}, and "
            f"{weave.settings}. Inject with the settings of the saved pool."
        )
