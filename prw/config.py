"""Settings of a pool of experts: what they mean, their defaults and their checks; no tensors and no PEFT."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prw.errors import ConfigError, fault_lines

Granularity = Literal["token", "sample"]
Gate = Literal["prob", "unit"]
Share = Literal["straight-through", "soft"]
KernelName = Literal["auto", "dense", "grouped", "triton", "reference"]
Value = TypeVar("Value")


class PoolSettings(BaseModel):
    """The shape of a pool's experts and how their router chooses; the same for every expert and site.

    Source: CoLoGen (arXiv 2602.22150), equations 2-4 and 8-10; where the paper is silent the field says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=1)
    """Rank of every expert's LoRA pair."""
    alpha: float | None = Field(default=None, gt=0)
    """LoRA alpha; the scale of an expert is alpha / rank. None means twice the rank (paper, figure 4)."""
    rank_pattern: dict[str, int] | None = None
    """Rank of the projections whose path ends like a key, a name or a regular expression, as in PEFT:
    `{"to_v": 8, "0.attn.to_k": 4}`. Of several keys that fit, the longest counts; a key that fits nothing
    is an error."""
    alpha_pattern: dict[str, float] | None = None
    """LoRA alpha of the projections whose path ends like a key, as with `rank_pattern`."""
    granularity: Granularity = "token"
    """What is routed: every token by itself, or a whole sample by the mean of its routed tokens."""
    gate: Gate = "prob"
    """Weight of the chosen expert: its probability among all experts (equation 4), or one."""
    share: Share = "straight-through"
    """Gradient of the newest expert's share: the hard share with the gradient of its probability, or the mean
    probability itself. The paper's indicator has no gradient, and it does not say what was used instead."""
    noise: bool = True
    """Whether the logits are noisy in training (equation 2), by torch's global generator. Evaluation is never
    noisy."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of a projection's experts in training, as in LoRA; the router's input has none."""
    train_veteran_gates: bool = False
    """Whether the router vectors of veterans go on training; if so, `as_of` is not exact and is refused."""
    router_norm: bool = False
    """Whether the router reads its input divided by its root mean square."""
    gate_std: float = Field(default=0.02, gt=0)
    """Standard deviation of a new expert's router vector; its noise vector starts at zero."""
    top_k: int = Field(default=1, ge=1)
    """How many experts an item goes to (in the paper one). The output sums over them, each weighted by its
    probability among *all* experts, not rescaled (equation 4). More than the pool has means all of them."""
    kernel: KernelName = "auto"
    """How the routed projection is computed: `reference` is its specification, `dense` takes all experts at
    once, `grouped` sorts, `triton` sorts in kernels of its own; `auto` chooses. The environment variable
    PRW_KERNEL overrides this."""

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _usable(cls, pattern: dict[str, float] | None) -> dict[str, float] | None:
        """Refuse keys that are not regular expressions and values that are not above zero."""
        for key, value in (pattern or {}).items():
            try:
                re.compile(key)
            except re.error as error:
                raise ValueError(f"{key!r} is not a name or regular expression ({error})") from error
            if not value > 0:
                raise ValueError(f"{key!r} expected a value above 0, got {value!r}")
        return pattern

    @property
    def scale(self) -> float:
        """Factor on an expert's output where no pattern says otherwise: alpha / rank."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    def rank_at(self, path: str) -> int:
        """Give the rank of new experts at a projection."""
        return matching(self.rank_pattern, path, self.rank)

    def scale_at(self, path: str) -> float:
        """Give the factor on every expert's output at a projection: its alpha / its rank."""
        rank = self.rank_at(path)
        return matching(self.alpha_pattern, path, 2.0 * rank if self.alpha is None else self.alpha) / rank

    def check_patterns(self, paths: Iterable[str]) -> None:
        """Refuse patterns that fit none of the projections that get experts.

        Raises:
            ConfigError: names the pattern and what is there.
        """
        names = list(paths)
        for setting in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, setting) or {}:
                if not any(fits(key, name) for name in names):
                    raise ConfigError(
                        f"{setting} has the key {key!r}, which fits none of the {len(names)} projections "
                        f"with experts: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}. A key is "
                        "the end of a path after a dot, or a regular expression for it."
                    )

    @classmethod
    def checked(cls, **options: Any) -> Self:
        """Build settings from options.

        Raises:
            ConfigError: if an option is unknown or has a value that cannot be used; lists every one.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, OF_LORA)) from error


def one_form(name: str) -> str:
    """Give a name in Unicode's composed form (NFC), so that equal text is an equal name.

    "é" is one character or two, by keyboard and file system; they look alike and compare unequal.
    """
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else name


def fits(key: str, path: str) -> bool:
    """Say whether a path ends like a key of a pattern, after a dot: PEFT's rule for `rank_pattern`."""
    return re.match(rf"(.*\.)?({key})$", path) is not None


def matching(pattern: Mapping[str, Value] | None, path: str, otherwise: Value) -> Value:
    """Give the value of the longest key of a pattern that fits a path.

    The first key will not do, because PEFT sorts the keys when it saves.
    """
    fitting = [key for key in pattern or () if fits(key, path)]
    return pattern[max(fitting, key=lambda key: (len(key), key))] if pattern and fitting else otherwise


OF_LORA = {
    "r": "it is called rank",
    "lora_alpha": "it is called alpha; None means twice the rank",
    "lora_dropout": "it is called dropout",
    "use_rslora": "set alpha to lora_alpha * sqrt(rank); the scale of an expert is alpha / rank",
    "init_lora_weights": "an expert starts at zero, or as a copy: add_expert(name, init='older')",
    "fan_in_fan_out": "leave it out, the layout of a layer is found from the layer",
    "target_modules": "it is called target in prw.inject",
    "exclude_modules": "it is called exclude in prw.inject",
    "layers_to_transform": "it is called layers in prw.inject",
    "adapter_name": "it is called adapter in prw.inject",
    **dict.fromkeys(
        ("modules_to_save", "layers_pattern", "task_type"),
        "prw.inject has no such option; use get_peft_model(model, prw.PrwConfig(...))",
    ),
    **dict.fromkeys(
        ("bias", "lora_bias", "use_dora", "use_qalora", "layer_replication", "trainable_token_indices"),
        "a pool of experts has no such option",
    ),
}
"""What is said of the usual options of a LoRA that have another name here, or none."""


def explain(error: ValidationError, model: type[BaseModel], hints: Mapping[str, str] | None = None) -> str:
    """Say which settings of a class cannot be used, a line for each; `hints` as in `fault_lines`."""
    lines = "".join(f"\n  {line}" for line in fault_lines(error, model, hints=hints))
    return f"these settings of {model.__name__} cannot be used:{lines}"
