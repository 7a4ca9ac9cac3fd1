"""One law of shifted times: what training draws is what the scheduler that samples would make of it."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.flux.sampling import Sampling, _schedule
from recipes.cologen.flux.shift import dynamic_mu, scheduler_for, shift_factor, shift_times

DEV = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).config
SCHNELL = FlowMatchEulerDiscreteScheduler().config
shifts = st.one_of(st.sampled_from(["none", "base", "dynamic"]), st.floats(0.05, 20.0))
times = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=6)


def factor_of(config, shift, tokens):
    """The factor for pictures of that many tokens."""
    return shift_factor(config, shift, dynamic_mu(config, tokens))


@given(shift=shifts, tokens=st.integers(1, 8192), drawn=times, config=st.sampled_from([DEV, SCHNELL]))
def test_the_scheduler_shifts_its_steps_as_training_shifts_its_times(shift, tokens, drawn, config):
    scheduler = scheduler_for(config, shift)
    scheduler.set_timesteps(sigmas=drawn, mu=dynamic_mu(scheduler.config, tokens))
    ours = shift_times(torch.tensor(drawn), factor_of(config, shift, tokens))
    assert ours.dtype is torch.float32
    torch.testing.assert_close(scheduler.sigmas[:-1], ours, rtol=1e-5, atol=1e-6)


@given(factor=st.floats(0.05, 20.0), drawn=times)
def test_shifting_keeps_the_ends_and_the_order(factor, drawn):
    shifted = shift_times(torch.tensor([0.0, *sorted(drawn), 1.0], dtype=torch.bfloat16), factor)
    assert shifted[0] == 0 and math.isclose(shifted[-1], 1, rel_tol=1e-6)
    assert (shifted.diff() >= 0).all() and shifted.dtype is torch.float32


def test_the_factor_of_flux_dev_grows_with_the_picture_and_is_published_at_its_anchors():
    assert factor_of(DEV, "base", 256) == pytest.approx(math.exp(0.5))
    assert factor_of(DEV, "base", 4096) == pytest.approx(math.exp(1.15))
    assert factor_of(DEV, "base", 1024) == pytest.approx(1.8776, abs=1e-4)  # 512 x 512
    assert factor_of(SCHNELL, "base", 4096) == 1.0
    assert factor_of(SCHNELL, "dynamic", 4096) == factor_of(DEV, "base", 4096)
    assert factor_of(DEV, "none", 4096) == 1.0 and factor_of(DEV, 3.0, 4096) == 3.0


def test_a_linear_scheduler_shifts_by_mu_itself():
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear").config
    scheduler = scheduler_for(config, "base")
    scheduler.set_timesteps(sigmas=[0.9, 0.3], mu=dynamic_mu(config, 900))
    ours = shift_times(torch.tensor([0.9, 0.3]), factor_of(config, "base", 900))
    torch.testing.assert_close(scheduler.sigmas[:-1], ours)


def test_times_that_are_not_shifted_keep_their_bits():
    drawn = torch.rand(100)
    assert torch.equal(shift_times(drawn, 1.0), drawn)


@pytest.mark.parametrize("shift", ["none", "base", "dynamic", 2.5])
def test_pictures_are_drawn_by_the_shift_that_was_asked_for(build, shift):
    model = build()
    model.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    _, steps = _schedule(model, 6, Sampling(height=8, width=12, steps=4, shift=shift))
    expected = shift_times(torch.linspace(1, 0.25, 4), factor_of(DEV, shift, 6))
    torch.testing.assert_close(steps / 1000, expected)
