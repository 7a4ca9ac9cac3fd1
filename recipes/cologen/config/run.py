"""A run's settings: what they are, how they are read from YAML and the command line, which may change later.

`--set KEY=VALUE` overrides one setting by its dotted name: `--set stages.control.lr=1e-3 data.seed=3`;
`stages.*` stands for every stage: `--set 'stages.*.batch_size=32'`. Building a model from settings is not
done here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from prw.config import PoolSettings
from recipes.cologen.config.data import DataSettings
from recipes.cologen.config.errors import ConfigError, explain
from recipes.cologen.config.files import apply_override, extended, read_yaml
from recipes.cologen.config.model import (
    BaseSettings,
    FlowSettings,
    MachineSettings,
    OptimizerSettings,
    Settings,
)
from recipes.cologen.config.training import (
    DropoutSettings,
    LoggingSettings,
    ReportSettings,
    SamplingSettings,
    ValidationSettings,
    VeteranSettings,
)
from recipes.cologen.stages import COLOGEN_STAGES, PAIRED_TASKS, StageSettings, stage_index

CONFIGS = Path(__file__).parents[1] / "configs"
REPOSITORY = Path(__file__).resolve().parents[3]
FREE_TO_CHANGE = ("machine", "logging", "validation", "sampling", "report")
"""Groups that a run may be continued with in another form: none of them changes what is learnt."""
FREE_SETTINGS = {
    "base": {"path", "revision"},
    "data": {"held_out", "held_out_seed", "held_out_sets", "max_broken", "cache", "buckets.index"},
    "optimizer": {"max_skipped_in_a_row", "max_skipped"},
}
"""Settings of other groups of which that is true too: where the base lies (a run knows its base by its
weights), what is measured on, how much may be broken, what is kept in caches and lists of sizes, and when a
run gives up. Where data sets and annotators lie is free too, once a run knows what they hold
(runs/data_binding.py)."""


class RunConfig(Settings):
    """Everything that decides a run."""

    name: str
    base: BaseSettings
    data: DataSettings = DataSettings()
    pool: PoolSettings = PoolSettings(rank=128)
    """The pool of experts and its router, as `prw.inject` takes them (Fig. 4: rank 128 is best)."""
    veteran: VeteranSettings = VeteranSettings()
    flow: FlowSettings = FlowSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    dropout: DropoutSettings = DropoutSettings()
    stages: dict[str, StageSettings] = Field(min_length=1)
    machine: MachineSettings = MachineSettings()
    logging: LoggingSettings = LoggingSettings()
    validation: ValidationSettings = ValidationSettings()
    sampling: SamplingSettings = SamplingSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        for key, place in (("source", self.data.source), ("held_out", self.data.held_out)):
            if place not in (None, "world", "sets") and not str(place).startswith("folder:"):
                raise ValueError(f"data.{key} is {place!r}; expected 'world' or 'folder:PATH' or 'sets'")
        if self.data.source == "sets" and self.data.sets == self.data.held_out_sets:
            raise ValueError("data.held_out_sets are the sets that are trained on; give others")
        if self.data.source == self.data.held_out and self.data.source not in ("world", "sets"):
            raise ValueError("data.held_out is the folder that is trained on; give another one")
        if self.data.size is not None and {self.data.source, self.data.held_out} <= {"world", None}:
            raise ValueError(
                "data.size is for pictures from elsewhere; those of the world have one size. Leave it out, "
                "or give --data folder:PATH"
            )
        if self.data.source == "world" and self.data.seed == self.data.held_out_seed:
            raise ValueError("data.held_out_seed equals data.seed: validation would show what is trained on")
        _check_replay(self.data, self.machine, self.stages)
        _check_cached_stages(self.data, self.stages)
        for position, (name, stage) in enumerate(self.stages.items()):
            earlier = list(self.stages)[:position]
            if stage.init not in ("zero", "previous", *earlier):
                raise ValueError(
                    f"stages.{name}.init is {stage.init!r}; expected 'zero', 'previous' or an earlier stage "
                    f"({', '.join(earlier) or 'there is none'})"
                )
            late = [task for task in stage.replay if task not in earlier]
            if late:
                raise ValueError(
                    f"stages.{name}.replay names {', '.join(late)}; expected earlier stages "
                    f"({', '.join(earlier) or 'there is none'})"
                )
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Stages in the order in which they are trained."""
        return tuple(self.stages)

    @property
    def base_path(self) -> Path:
        """Where the base is: relative paths are looked up here, then in the repository."""
        path = Path(self.base.path).expanduser()
        return path if path.is_absolute() or path.exists() else REPOSITORY / path

    @property
    def long_prompts(self) -> Literal["truncate", "refuse"]:
        """What becomes of prompts of training that are too long for the base."""
        return self.base.long_prompts or ("truncate" if self.data.source == "sets" else "refuse")

    @property
    def held_out_long_prompts(self) -> Literal["truncate", "refuse"]:
        """What becomes of those of held-out pictures."""
        return self.base.long_prompts or ("truncate" if self.data.held_out == "sets" else "refuse")

    def fingerprint(self) -> str:
        """Short hash of the settings that decide what is learnt."""
        learnt = self.model_dump(mode="json", exclude=_free_settings())
        return hashlib.sha256(json.dumps(learnt, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """All settings, defaults included, as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _free_settings() -> dict[str, Any]:
    """Groups and settings that are free to change, nested as the config is."""
    free: dict[str, Any] = dict.fromkeys(FREE_TO_CHANGE, True)
    for group, settings in FREE_SETTINGS.items():
        parts = [setting.partition(".") for setting in sorted(settings)]
        free[group] = {setting: {inner} if inner else True for setting, _, inner in parts}
    return free


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config of this folder by its name, or any YAML file, and apply `KEY=VALUE` overrides.

    Raises:
        ConfigError: The file is missing or not YAML, a key is given twice or unknown (the nearest is named),
        a value is wrong.
        UnknownStageError: A stage is not one of CoLoGen's.
    """
    path, values = _read(name_or_path)
    return parse_config(extended(values, path, _read), overrides, origin=str(path))


def parse_config(
    values: Mapping[str, Any], overrides: Sequence[str] = (), origin: str = "the config"
) -> RunConfig:
    """Check plain values and fill each stage up from the paper's row (stages.py).

    Raises:
        ConfigError: As `load_config`.
        UnknownStageError: As `load_config`.
    """
    # Overrides are written into groups of settings, which stay the caller's own.
    resolved = {**copy.deepcopy(dict(values)), "stages": _fill_stages(values.get("stages"), origin)}
    for override in overrides:
        apply_override(resolved, override)
    try:
        return RunConfig.model_validate(resolved)
    except ValidationError as error:
        if overrides:
            origin += f" with --set {' '.join(overrides)}"
        raise ConfigError(explain(error, RunConfig, origin)) from error


def _read(name_or_path: str | Path) -> tuple[Path, dict[str, Any]]:
    path = _find_config(name_or_path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} should hold settings by name, but holds {type(values).__name__}.")
    return path, values


def _find_config(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"there is no config file {path}; check the path given to --config.")
    named = CONFIGS / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    raise ConfigError(
        f"there is no config {str(name_or_path)!r}; give a path ending in .yaml, or one of: {known}."
    )


def _fill_stages(given: Any, origin: str) -> dict[str, Any]:
    """Each stage that a config names, on top of the paper's row; all five where it names none."""
    if given is None:
        given = dict.fromkeys(COLOGEN_STAGES)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{origin}: 'stages' should map a stage's name to its settings, got {given!r}.")
    stages: dict[str, Any] = {}
    for name, settings in given.items():
        stage_index(str(name), tuple(COLOGEN_STAGES))
        if not isinstance(settings, Mapping | None):
            raise ConfigError(f"{origin}: stages.{name} should hold settings by name, got {settings!r}.")
        stages[name] = {**COLOGEN_STAGES[name].model_dump(), **(settings or {})}
    return stages


def _check_replay(data: DataSettings, machine: MachineSettings, stages: dict[str, StageSettings]) -> None:
    """Refuse replay whose batches may hold examples of several shapes.

    Raises:
        ValueError: Names the stage, why its tasks do not go together, and what to change.
    """
    for name, stage in stages.items():
        if stage.replay:
            _check_replay_of(name, stage, data, machine)


def _check_cached_stages(data: DataSettings, stages: dict[str, StageSettings]) -> None:
    """Refuse to keep the data of stages that there are not, as a word misspelt would keep nothing.

    Raises:
        ValueError: Names them.
    """
    unknown = [name for name in data.cache.stages or () if name not in stages]
    if unknown:
        raise ValueError(
            f"data.cache.stages names {', '.join(unknown)}; expected stages of this run: {', '.join(stages)}"
        )


def _check_replay_of(name: str, stage: StageSettings, data: DataSettings, machine: MachineSettings) -> None:
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
