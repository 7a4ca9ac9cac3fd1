"""Runs of a few steps on a tiny base, as the tests of training make them."""

from tests.recipes.cologen.training.conftest import at_step, base_path, config, run, stop_at

__all__ = ["at_step", "base_path", "config", "run", "stop_at"]
