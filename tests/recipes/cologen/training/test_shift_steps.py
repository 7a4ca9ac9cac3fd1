"""The shift of times in training has its own number of steps: how pictures are drawn changes nothing."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

import prw
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.config.run import load_config
from recipes.cologen.flux.shift import shift_factor, shift_times
from recipes.cologen.runs.config_changes import DifferentConfigError, check_config
from recipes.cologen.tools.random_flux2 import build_random_flux2
from recipes.cologen.training.flow import sample_timesteps
from recipes.cologen.training.input.batches import Batch
from recipes.cologen.training.step import TrainedModel, encode
from tests.recipes.cologen.training.conftest import make_config

SEEDS = (3, 4)


@pytest.fixture(scope="module")
def klein():
    """A FLUX.2, whose own shift depends on the number of steps, and a pool on it."""
    model = build_random_flux2()
    weave = prw.inject(model.transformer, experts=["inpainting"], rank=2)
    return TrainedModel(model, weave, Accelerator(), make_config("x"), Encoder(model, model.device))


def times(trained, *settings):
    pixels = torch.zeros(2, 3, 48, 32, dtype=torch.uint8)
    batch = Batch(pixels, pixels, ("a", "b"), SEEDS)
    return encode(replace(trained, config=make_config("x", *settings)), batch).timestep


@pytest.mark.parametrize("shift", ["base", "dynamic"])
def test_how_pictures_are_drawn_does_not_change_the_times_of_training(klein, shift):
    drawn = [times(klein, f"flow.shift={shift}", f"sampling.steps={steps}") for steps in (1, 4, 50)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("steps", [4, 28, 50])
def test_the_times_are_those_that_the_base_shifts_for_that_many_steps(klein, steps):
    model = klein.model
    tokens = model.encode_images(torch.zeros(1, 3, 48, 32)).tokens.shape[1]
    factor = shift_factor(model.scheduler.config, "base", model.schedule_shift(tokens, steps))
    expected = shift_times(sample_timesteps(SEEDS), factor)
    assert factor != 1.0
    assert torch.equal(times(klein, "flow.shift=base", f"flow.shift_steps={steps}"), expected)


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_steps_are_part_of_what_is_learnt(first, second):
    here, there = (
        make_config("x", f"flow.shift_steps={steps}", f"sampling.steps={first}").fingerprint()
        for steps in (first, second)
    )
    assert (here == there) == (first == second)


def test_the_shipped_configs_shift_as_they_did():
    for name in ("tiny", "flux_dev", "flux_kontext", "flux_schnell", "flux_dev_tiny_weights"):
        assert load_config(name).flow.shift_steps == 28  # FLUX.1's shift does not depend on it
    assert load_config("flux2_klein").flow.shift_steps == load_config("flux2_klein").sampling.steps == 50


def written(folder, config, without):
    """A run's config from before the setting."""
    text = config.to_yaml()
    line = f"  shift_steps: {config.flow.shift_steps}\n"
    assert line in text
    folder.mkdir()
    (folder / "config.yaml").write_text(text.replace(line, "") if without else text)
    return folder


def test_a_run_that_is_older_than_the_setting_shifted_by_its_sampling_steps(tmp_path):
    old = make_config("x", "flow.shift=base", "sampling.steps=7")
    folder = written(tmp_path / "run", old, without=True)
    check_config(folder, make_config("x", "flow.shift=base", "flow.shift_steps=7"), ("inpainting",))
    with pytest.raises(DifferentConfigError, match=r"flow\.shift_steps: 7 there, 28 now"):
        check_config(folder, old, ("inpainting",))


def test_where_nothing_reads_the_steps_they_may_change(tmp_path):
    for name, without in (("old", True), ("new", False)):
        folder = written(tmp_path / name, make_config("x"), without)
        check_config(folder, make_config("x", "flow.shift_steps=9"), ("inpainting",))
    folder = written(tmp_path / "read", make_config("x", "flow.shift=dynamic"), without=False)
    with pytest.raises(DifferentConfigError, match=r"flow\.shift_steps: 28 there, 9 now"):
        check_config(folder, make_config("x", "flow.shift=dynamic", "flow.shift_steps=9"), ("inpainting",))
