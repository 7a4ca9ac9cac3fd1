"""Generation settings of a pipeline, and the schedule and annotators that follow from them."""

from __future__ import annotations

from typing import Any

from recipes.cologen.config.model import Shift
from recipes.cologen.flux.shift import SHIFTED, scheduler_for
from recipes.cologen.pipeline.tasks import ANNOTATORS, annotator_of_file
from recipes.cologen.runs.generation import GenerationSettings


def keep_settings(pipe: Any, settings: GenerationSettings) -> None:
    """Keep settings where diffusers keeps a pipeline's own: they go along when it is saved or reused."""
    rest = settings.model_dump(mode="json", exclude={"source_timestep"})
    pipe.register_to_config(source_timestep=settings.source_timestep, generation=rest)
    own = {
        kind: annotator_of_file(kind, settings.annotators, lambda: pipe._execution_device)
        for kind in settings.annotators
    }
    pipe.annotators = {**ANNOTATORS, **own}


def shift_as(pipe: Any, shift: Shift) -> None:
    """Shift the steps by a law, starting from the base's own scheduler, whatever run came before."""
    config = {name: value for name, value in pipe.scheduler.config.items() if name[0] != "_"}
    own = pipe.config.base_schedule or {name: config[name] for name in SHIFTED if name in config}
    base = {**config, **own}
    if shift == "base" and base == config:
        return
    pipe.register_to_config(base_schedule=own)
    pipe.register_modules(scheduler=scheduler_for(base, shift))
