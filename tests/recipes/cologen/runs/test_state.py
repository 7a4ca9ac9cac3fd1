"""Random generators come back where they were, and seeding decides them."""

import random

import numpy as np
import torch

from recipes.cologen.runs.checkpoint import capture_rng, load_tensors, restore_rng, save_tensors, seed_all


def draws():
    """A few numbers from every generator, those with memory of a second normal included."""
    return (
        [random.random(), random.gauss(0, 1)],
        [np.random.rand(), np.random.randn()],
        torch.randn(3).tolist(),
    )


def test_generators_go_on_where_they_were_captured(tmp_path):
    seed_all(7)
    draws()
    save_tensors(tmp_path, "rng", capture_rng())
    expected = [draws(), draws()]
    seed_all(8)
    restore_rng(load_tensors(tmp_path, "rng"))
    assert [draws(), draws()] == expected


def test_a_seed_decides_all_generators_even_a_large_one():
    seed_all(2**63 - 1)
    first = draws()
    seed_all(2**63 - 1)
    assert draws() == first
    seed_all(0)
    second = draws()
    assert all(one != other for one, other in zip(first, second, strict=True))
