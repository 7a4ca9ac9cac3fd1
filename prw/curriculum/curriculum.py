"""The curriculum: an ordered list of stages that walks a pool forward, one expert per stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from prw.curriculum.stage import Stage
from prw.errors import CurriculumError
from prw.weave import Weave


class Curriculum(Sequence[Stage]):
    """Stages in their order; their names are unique and each starts from zero or from an earlier one."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Check and keep the stages.

        Raises:
            CurriculumError: if there is none, two share a name, or one starts from a later or unknown stage.
        """
        self._stages = tuple(stages)
        if not self._stages:
            raise CurriculumError("a curriculum needs at least one stage, got none.")
        earlier: list[str] = []
        for stage in self._stages:
            if stage.name in earlier or stage.name == "zero":
                raise CurriculumError(
                    f"two stages are called {stage.name!r}, or it is the reserved name 'zero'."
                )
            if stage.init not in (None, "zero", *earlier):
                known = ", ".join(earlier) or "none"
                raise CurriculumError(
                    f"stage {stage.name!r} starts from {stage.init!r}, which is no earlier stage; earlier "
                    f"ones: {known}."
                )
            earlier.append(stage.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages, in their order."""
        return tuple(stage.name for stage in self._stages)

    def __len__(self) -> int:
        """Count the stages."""
        return len(self._stages)

    def __contains__(self, stage: object) -> bool:
        """Tell whether a stage, or one of that name, is part of it."""
        return stage in self._stages or stage in self.names

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
            return self._stages[index]
        if index not in self.names:
            raise CurriculumError(f"there is no stage {index!r}; stages are {', '.join(self.names)}.")
        return self._stages[self.names.index(index)]

    def stages(self, weave: Weave) -> Iterator[Stage]:
        """Walk a pool through the stages: add the stage's expert, freeze the rest, yield the stage.

        It begins where the pool is. A pool whose newest expert still trains is in the middle of that stage,
        which is yielded (again) without adding anything; after `weave.freeze()`, which also happens when the
        loop goes on to the next stage, it has finished it. To save a pool as finished, call `weave.freeze()`
        before saving.

        Raises:
            CurriculumError: if the pool's experts are not the first stages of this curriculum.
        """
        self._check_start(weave)
        for position, stage in enumerate(self._stages):
            if position < len(weave.experts) - 1 or (position < len(weave.experts) and weave.frozen):
                continue
            if position == len(weave.experts):
                weave.add_expert(stage.name, init=stage.init)
            yield stage
            weave.freeze()

    def _check_start(self, weave: Weave) -> None:
        if weave.experts != self.names[: len(weave.experts)]:
            raise CurriculumError(
                f"the pool's experts ({', '.join(weave.experts)}) are not the first stages of this "
                f"curriculum ({', '.join(self.names)}). Load the pool that belongs to it, or start from an "
                "empty one."
            )
