"""Checks of data settings against stages: what replay mixes into a batch, and what a cache keeps."""

from __future__ import annotations

from recipes.cologen.config.data import DataSettings
from recipes.cologen.config.model import MachineSettings
from recipes.cologen.stages import PAIRED_TASKS, StageSettings


def check_replay(data: DataSettings, machine: MachineSettings, stages: dict[str, StageSettings]) -> None:
    """Refuse replay whose batches may hold examples of several shapes.

    Raises:
        ValueError: Names the stage, why its tasks do not go together, and what to change.
    """
    for name, stage in stages.items():
        if stage.replay:
            _check_stage(name, stage, data, machine)


def check_cached_stages(data: DataSettings, stages: dict[str, StageSettings]) -> None:
    """Refuse to keep the data of stages that there are not, as a word misspelt would keep nothing.

    Raises:
        ValueError: Names them.
    """
    unknown = [name for name in data.cache.stages or () if name not in stages]
    if unknown:
        raise ValueError(
            f"data.cache.stages names {', '.join(unknown)}; expected stages of this run: {', '.join(stages)}"
        )


def _check_stage(name: str, stage: StageSettings, data: DataSettings, machine: MachineSettings) -> None:
    replay = f"stages.{name}.replay mixes tasks into a batch"
    if data.buckets.on:
        raise ValueError(f"{replay}, and data.buckets makes every batch of one size; leave one of them out")
    # The world's pictures are all alike, and an example alone goes with itself.
    if data.source == "world" or machine.micro_batch == 1 or stage.batch_size == 1:
        return
    if data.size is None:
        raise ValueError(
            f"{replay}, whose pictures must then have one size, but without data.size each task's keep their "
            "own; give them one with data.size=[512,512], or take one example at a time with "
            "machine.micro_batch=1"
        )
    paired = [task for task in (name, *stage.replay) if task in PAIRED_TASKS]
    if data.max_sources > 1 and paired:
        raise ValueError(
            f"{replay}, whose examples must then have as many sources, but data.max_sources="
            f"{data.max_sources} lets those of {', '.join(paired)} have more than others; take one example "
            "at a time with machine.micro_batch=1, or leave one of them out"
        )
