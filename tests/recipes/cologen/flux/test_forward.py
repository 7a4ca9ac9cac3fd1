"""Guidance is asked for exactly when the base takes it."""

from collections.abc import Callable

import pytest

from recipes.cologen.errors import GuidanceError
from recipes.cologen.flux import FluxModel


def test_a_distilled_base_needs_guidance(
    build: Callable[..., FluxModel], inputs: Callable[..., tuple]
) -> None:
    model = build(guidance_embeds=True)
    with pytest.raises(GuidanceError, match=r"pass guidance=1\.0 in training"):
        model.velocity(*inputs(model))


def test_guidance_that_would_do_nothing_is_refused(
    build: Callable[..., FluxModel], inputs: Callable[..., tuple]
) -> None:
    model = build()
    with pytest.raises(GuidanceError, match=r"guidance=3\.5 would do nothing"):
        model.velocity(*inputs(model), guidance=3.5)
