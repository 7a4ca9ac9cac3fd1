"""Compares a run folder's config with the one that is asked for: which settings differ and matter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recipes.cologen.config.files import parse_yaml
from recipes.cologen.config.run import FREE_SETTINGS, FREE_TO_CHANGE, RunConfig
from recipes.cologen.errors import RunFolderError
from recipes.cologen.runs.files import CONFIG


class DifferentConfigError(RunFolderError):
    """An output folder holds a run with other settings, or on another base."""


_PLACES = {"sets": ("path", "images", "additions"), "annotators": ("path", "revision")}
"""Settings of data sets and annotators that say where they lie."""


def check_config(run: Path, config: RunConfig, started: tuple[str, ...], bound: Collection[str] = ()) -> None:
    """Refuse a config under which the stages that have begun would have been trained otherwise.

    Args:
        run: The run's folder.
        config: What the run is asked to be.
        started: Stages that have begun; settings of others may differ.
        bound: Keys of data sets and annotators (`data.sets.NAME`) that the run knows by what they hold: where
            they lie may differ.

    Raises:
        DifferentConfigError: The order of stages or a setting differs; each is named.
        RunFolderError: The folder's config.yaml cannot be read.
    """
    _check_names(run, started, config.stage_names)
    differing = _differing_fields(_read_config(run), config, set(started), bound)
    if differing:
        stage = _first_reader([key for key, _, _ in differing], config.stage_names)
        raise DifferentConfigError(
            f"{run} holds a run with other settings:\n"
            + "\n".join(f"  {key}: {there!r} there, {here!r} now" for key, there, here in differing)
            + f"\nGo on with its own settings (--config {run / CONFIG}), give another --output, or "
            f"train anew what reads them (--restart {stage})."
        )


def _first_reader(keys: Sequence[str], names: tuple[str, ...]) -> str:
    """The earliest stage that any of these settings is of; those of no stage are of all."""
    stages = [key.split(".")[1] if key.startswith("stages.") else names[0] for key in keys]
    return min((name for name in stages if name in names), key=names.index, default=names[0])


def _check_names(run: Path, started: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Refuse a config whose first stages are not those that the run has begun."""
    if names[: len(started)] != started:
        raise DifferentConfigError(
            f"{run} has trained the stages {', '.join(started)}, but the config begins with "
            f"{', '.join(names[: len(started)])}. Keep their order in 'stages', or give another --output."
        )


def _read_config(run: Path) -> dict[str, Any]:
    file = run / CONFIG
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFolderError(f"{file} is not YAML: {error}. Give another --output.") from error
    return values if isinstance(values, dict) else {}


def _differing_fields(
    there: dict[str, Any], config: RunConfig, started: set[str], bound: Collection[str]
) -> list[tuple[str, Any, Any]]:
    """Settings that differ and matter: not those free to change, nor those of stages that have not begun."""
    old, new = _flatten(_with_defaults(there)), _flatten(config.model_dump(mode="json"))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    unread = set() if new["flow.shift"] in ("base", "dynamic") else {"flow.shift_steps"}
    return [
        (key, old.get(key, "(absent)"), new.get(key, "(absent)"))
        for key in keys
        if not (_is_free(key) or _is_place(key, old.get(key), new.get(key), bound))
        and key not in unread
        and (not key.startswith("stages.") or key.split(".")[1] in started)
    ]


def _is_free(key: str) -> bool:
    group, _, setting = key.partition(".")
    free = FREE_SETTINGS.get(group, ())
    return group in FREE_TO_CHANGE or setting in free or setting.partition(".")[0] in free


def _is_place(key: str, old: Any, new: Any, bound: Collection[str]) -> bool:
    """Whether a setting only says where something lies that the run knows by what it holds."""
    owner, _, setting = key.rpartition(".")
    if key == "data.source":
        return key in bound and all(str(place).startswith("folder:") for place in (old, new))
    group = owner.split(".")[1] if owner.startswith("data.") else ""
    return owner in bound and setting in _PLACES.get(group, ())


def _with_defaults(there: dict[str, Any]) -> dict[str, Any]:
    """What a run was trained with: a setting that is younger than the run had its default's effect.

    Before there was `flow.shift_steps`, `sampling.steps` had its effect.
    """
    try:
        known = RunConfig.model_validate(there)
    except ValidationError:
        return there
    flow = known.flow
    if "shift_steps" not in flow.model_fields_set:
        flow = flow.model_copy(update={"shift_steps": known.sampling.steps})
    return known.model_copy(update={"flow": flow}).model_dump(mode="json")


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}
