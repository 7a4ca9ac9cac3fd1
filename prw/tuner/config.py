"""PrwConfig, the configuration of a pool as PEFT wants it, and the registration of the method with PEFT."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Self

import peft
from huggingface_hub import ModelCard
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from prw.config import OF_LORA, PoolSettings, one_form
from prw.errors import ConfigError, UnsupportedError
from prw.tuner.card import model_card, put_card

OLDEST_PEFT = (0, 21)
"""The first PEFT that asks a method how its weights are saved."""
METHOD = "PRW"

STRUCTURAL = ("kv", "k", "v")
BY_STRUCTURE = (*STRUCTURAL, "all-kv")
"""Targets found by structure: "all-kv" in every stream of a joint attention, the others in the main one."""
ALL_LINEAR = "all-linear"
EVERY_ROW = "all"
"""What `rows` says of layers that get experts whole, whatever they make."""
WHOLE_MODEL = (*BY_STRUCTURE, ALL_LINEAR)
"""What `target_modules` can be besides a name, glob or pattern, or a list of those."""


def check_peft() -> None:
    """Refuse a PEFT that is too old; importing this module calls it, before any newer name of PEFT is used.

    Raises:
        UnsupportedError: names the version and the command that updates it.
    """
    numbers = re.findall(r"\d+", peft.__version__)
    if tuple(int(number) for number in numbers[:2]) < OLDEST_PEFT:
        raise UnsupportedError(
            f"prw needs peft 0.21 or newer, which asks a method how its weights are saved; this is peft "
            f"{peft.__version__}. Run: pip install --upgrade peft"
        )


def peft_type() -> PeftType:
    """Return the member of PEFT's enum for PRW, adding it the first time.

    PEFT accepts only methods that the enum lists, and has no way to add one from outside.

    Raises:
        UnsupportedError: if the enum of this PEFT cannot be extended.
    """
    if METHOD not in PeftType.__members__:
        member = str.__new__(PeftType, METHOD)
        member._name_, member._value_ = METHOD, METHOD
        PeftType._member_names_.append(METHOD)
        PeftType._member_map_[METHOD] = member
        PeftType._value2member_map_[METHOD] = member
        type.__setattr__(PeftType, METHOD, member)
    if PeftType(METHOD) is not PeftType[METHOD] or METHOD not in list(PeftType):
        raise UnsupportedError(
            "prw could not register itself with this version of peft: its PeftType is no plain str enum any "
            "more. prw works with peft 0.21; please report the version you have."
        )
    return PeftType[METHOD]


def register(model_cls: type[BaseTuner]) -> None:
    """Register the method with PEFT; a second call changes nothing.

    `import prw` does this, so it must come before any loader that meets a folder of a pool.
    """
    if peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=METHOD.lower(), config_cls=PrwConfig, model_cls=model_cls)


check_peft()

_Mirror: Any = make_dataclass(
    "_Mirror",
    [
        (name, info.annotation, field(default=info.default))
        for name, info in PoolSettings.model_fields.items()
    ],
    bases=(PeftConfig,),
)


@dataclass
class PrwConfig(_Mirror):  # type: ignore[misc, unused-ignore]
    """PEFT configuration of a pool: every field of `prw.config.PoolSettings`, and the fields below.

    Attributes:
        target_modules: "kv", "k", "v" or "all-kv" (found by structure), "all-linear" as in PEFT, or module
            names, globs or patterns.
        resolved_from: What `target_modules` was before the model's paths took its place; written by prw.
        rows: Which rows of a projection that makes keys and values get experts: "kv", "k" or "v"; "all" with
            `target_modules="all-linear"`.
        layout: How such a projection is laid out where its block does not show it: "q|k|v", "8*(q|k|v)", ...
        experts: Names of the experts, oldest first.
        expert_ranks: Expert to rank pattern, for imported experts, which have their own ranks.
        imported: Names of the imported experts, whose A and B never train.
        newest_frozen: Whether the newest expert is frozen too, since its stage has ended.
        stages: Settings of the stage that trained each expert, and how many of its steps are done, by name;
            kept by `prw.Curriculum`, empty without one.
        trained_beside: Checksums of what trained beside the pool when an expert's stage ended, by expert and
            name of the parameter; such parameters are not saved with the pool.
        exclude_modules: Modules that get no experts although they match, as in PEFT.
        layers_to_transform: Only layers with these indices, as in PEFT.
        layers_pattern: What precedes the layer index, as in PEFT.
        modules_to_save: Other modules that train and are saved whole, as in PEFT.
        target_parameters: Not supported; PEFT reads the field.
        bias: Not supported beyond "none"; PEFT reads the field.

    Raises:
        ConfigError: if a setting has an unusable value.
    """

    target_modules: Any = "kv"
    resolved_from: Any = None
    rows: str = "kv"
    layout: str | None = None
    experts: list[str] = field(default_factory=list)
    imported: list[str] = field(default_factory=list)
    newest_frozen: bool = False
    expert_ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_beside: dict[str, dict[str, int]] = field(default_factory=dict)
    exclude_modules: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    bias: str = "none"

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse options of a LoRA with the names that they have here.

        Other unknown options are left to the dataclass: from its error PEFT concludes that a later version
        wrote the file, and drops them with a warning.

        Raises:
            ConfigError: names every option and its name here.
        """
        unknown = [name for name in options if name in OF_LORA and name not in cls.__dataclass_fields__]
        if unknown:
            lines = [f"  {name}: {OF_LORA[name]}, got {options[name]!r}" for name in unknown]
            raise ConfigError("these options are not PrwConfig's:\n" + "\n".join(lines))
        config: Self = super().__new__(cls)
        return config

    def __post_init__(self) -> None:
        """Check every setting and the experts' names."""
        super().__post_init__()
        self.peft_type: PeftType = peft_type()
        self.settings()
        if isinstance(self.target_modules, str) and self.target_modules not in WHOLE_MODEL:
            self.target_modules = [self.target_modules]  # else PEFT would read a name or glob as a pattern
        self.rows = self.rows_of(self.target_modules)
        if self.rows not in (*STRUCTURAL, EVERY_ROW):
            raise ConfigError(f'rows is "kv", "k", "v" or "all", got {self.rows!r}.')
        if self.rows == EVERY_ROW and self.layout is not None:
            raise ConfigError(
                f"layout={self.layout!r} says which rows are keys and values, and target='all-linear' adapts "
                "every row. Leave layout out, or name the projections in target."
            )
        if isinstance(self.experts, str):
            raise ConfigError(
                f"experts is a list of names, got the string {self.experts!r}; for one expert write "
                f"experts=[{self.experts!r}]."
            )
        names = [one_form(name) for name in self.experts]
        for position, name in enumerate(names):
            check_name(name, names[:position])
        self.change_names(one_form)
        if self.bias != "none" or self.target_parameters:
            raise ConfigError(
                f"PRW adds experts to projections only; got bias={self.bias!r} and "
                f"target_parameters={self.target_parameters!r}. Leave bias at 'none' and target_parameters "
                "at None."
            )

    def rows_of(self, target: Any) -> str:
        """Return which rows of a fused projection a target means: its own letter, or those of the setting."""
        return EVERY_ROW if target == ALL_LINEAR else target if target in ("k", "v") else self.rows

    def change_names(self, change: Callable[[str], str | None]) -> None:
        """Change the experts' names everywhere; an expert whose new name is None is taken out.

        Args:
            change: Returns the new name of an expert.
        """
        for field_name in ("experts", "imported"):
            names = map(change, getattr(self, field_name))
            setattr(self, field_name, [name for name in names if name is not None])
        for field_name in ("expert_ranks", "stages", "trained_beside"):
            values = {change(name): value for name, value in getattr(self, field_name).items()}
            values.pop(None, None)
            setattr(self, field_name, values)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the configuration and a card beside it, as PEFT and transformers do when they save a pool.

        Args:
            save_directory: Folder to write into.
            **kwargs: Passed to PEFT.
        """
        super().save_pretrained(save_directory, **kwargs)
        put_card(Path(save_directory), self.card())

    def card(self) -> ModelCard:
        """Write the model card of the pool."""
        return model_card(self.experts, self.settings(), self.base_model_name_or_path)

    def settings(self) -> PoolSettings:
        """Return the pool's settings, checked.

        Raises:
            ConfigError: if a setting has an unusable value.
        """
        return PoolSettings.checked(**{name: getattr(self, name) for name in PoolSettings.model_fields})


def check_name(name: object, taken: list[str]) -> None:
    """Refuse an expert's name that is unusable, reserved or taken.

    Raises:
        ConfigError: says which of these, and what to do.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"an expert's name is a non-empty string, got {name!r}.")
    if name == "zero":
        raise ConfigError('no expert can be called "zero": add_expert(init="zero") means a start from zero.')
    if name in taken:
        raise ConfigError(f"the pool already has an expert {name!r}; its experts are {', '.join(taken)}.")
