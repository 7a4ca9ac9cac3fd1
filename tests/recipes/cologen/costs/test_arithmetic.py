"""Operations of a step: those of FLUX.1-dev by hand, and what checkpointing and more examples add."""

import pytest
import torch

from recipes.cologen.config.run import REPOSITORY
from recipes.cologen.costs.activations import Load
from recipes.cologen.costs.arithmetic import step_flops
from recipes.cologen.costs.shapes import SHAPES, read_shape
from tests.recipes.cologen.costs.test_activations import POOL

TINY = REPOSITORY / "recipes/cologen/assets/tiny_flux"


def test_the_operations_of_flux_dev_are_those_of_its_layers() -> None:
    width, text, image = 3072, 512, 2 * 1024
    # Four projections and an MLP of four times the width, or the same fused; twice, forward and backward.
    products = 57 * 2 * (text + image) * 12 * width**2 * 2
    noise = text + image // 2
    attended = 57 * (noise * (text + image) + (image // 2) ** 2) * width * 4
    by_hand = products + attended * 3.5  # the backward pass of attention is five products, not two
    load = Load(1, 512, 512, experts=1, dtype=torch.bfloat16)
    assert step_flops(read_shape(SHAPES / "flux_dev"), POOL, load) == pytest.approx(by_hand, rel=0.03)


def test_checkpointing_adds_a_forward_pass_and_examples_add_alike() -> None:
    load = Load(1, 16, 16, experts=2)
    one, two = (step_flops(read_shape(TINY), POOL, load._replace(batch=batch)) for batch in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)
    again = step_flops(read_shape(TINY), POOL, load._replace(checkpointing=True))
    assert 1.3 < again / one < 1.6
