"""A stage: one task with its expert, routing target and optimiser settings, as data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prw.config import explain, one_form
from prw.errors import ConfigError


class Stage(BaseModel):
    """One task of a curriculum; its expert has its name.

    Source: CoLoGen (arXiv 2602.22150), section 3 and table 1: rho 1 and alpha 0 in the first stage, 0.8 and
    0.5 later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """Name of the stage and of its expert."""
    rho: float = Field(ge=0, le=1)
    """Target share of the newest expert."""
    alpha: float = Field(ge=0)
    """Weight of the veteran loss."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    lr: float = Field(gt=0)
    """Learning rate."""
    init: str | None = None
    """Where the expert starts: None or "zero" at zero output, else as a copy of that earlier expert."""

    def __init__(
        self, name: str, *, rho: float, alpha: float, steps: int, lr: float, init: str | None = None
    ) -> None:
        """Check and keep the settings.

        Raises:
            ConfigError: if a value cannot be used.
        """
        try:
            name, init = one_form(name), init and one_form(init)
            super().__init__(name=name, rho=rho, alpha=alpha, steps=steps, lr=lr, init=init)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self))) from error
