"""Settings of a pool of experts: what they mean, their defaults and their checks; no tensors and no PEFT."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prw.errors import ConfigError

Granularity = Literal["token", "sample"]
Gate = Literal["prob", "unit"]
Share = Literal["straight-through", "soft"]
KernelName = Literal["auto", "dense", "reference"]


class PoolSettings(BaseModel):
    """How the experts of a pool look and how their router chooses; the same for every expert and site.

    Source: CoLoGen (arXiv 2602.22150), equations 2-4 and 8-10; where the paper is silent the field says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=1)
    """Rank of every expert's LoRA pair."""
    alpha: float | None = Field(default=None, gt=0)
    """LoRA alpha; the scale of an expert is alpha / rank. None means twice the rank (paper, figure 4)."""
    granularity: Granularity = "token"
    """What is routed: every token by itself, or a whole sample by the mean of its routed tokens."""
    gate: Gate = "prob"
    """Weight of the chosen expert: its probability among all experts (equation 4), or one."""
    share: Share = "straight-through"
    """Gradient of the newest expert's share: value of the hard share with the gradient of its probability, or
    the mean probability itself. The paper's indicator has no gradient and it does not say what it used."""
    noise: bool = True
    """Whether the logits are noisy in training (equation 2). Evaluation never draws noise."""
    train_veteran_gates: bool = False
    """Whether the router vectors of veterans go on training; if so, the pool of an earlier stage is not
    exact."""
    router_norm: bool = False
    """Whether the router reads its input divided by its root mean square."""
    gate_std: float = Field(default=0.02, gt=0)
    """Standard deviation of a new expert's router vector; its noise vector starts at zero."""
    top_k: Literal[1] = 1
    """How many experts an item goes to; the method, and this library, choose exactly one."""
    kernel: KernelName = "auto"
    """Which routed projection runs: `reference` is the specification, `dense` the fast one, `auto` picks."""

    @property
    def scale(self) -> float:
        """Factor on an expert's output: alpha / rank."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    @classmethod
    def checked(cls, **options: Any) -> Self:
        """Build settings from options.

        Raises:
            ConfigError: if an option is unknown or has a value that cannot be used; lists every one.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in one line per fault which setting is wrong, what came, and which settings exist."""
    lines = [
        f"  {'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}, got {fault['input']!r}"
        for fault in error.errors()
    ]
    known = ", ".join(model.model_fields)
    return (
        f"these settings of {model.__name__} cannot be used:\n"
        + "\n".join(lines)
        + f"\nSettings are: {known}."
    )
