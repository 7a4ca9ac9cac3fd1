"""Flow matching: ends of the path, seeds that decide alone, the law of times."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.training.flow import interpolate, sample_noise, sample_timesteps

SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_time_0_is_the_picture_and_time_1_the_noise(seeds, tokens, channels):
    noise = sample_noise(seeds, (tokens, channels))
    clean = torch.randn(noise.shape)
    assert torch.equal(interpolate(clean, noise, torch.zeros(len(seeds)))[0], clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(len(seeds)))[0], noise)


@given(SEEDS)
def test_following_the_velocity_back_arrives_at_the_picture(seeds):
    noise, times = sample_noise(seeds, (3, 2)), sample_timesteps(seeds)
    clean = torch.randn(noise.shape)
    noisy, _, velocity = interpolate(clean, noise, times)
    torch.testing.assert_close(noisy - times[:, None, None] * velocity, clean)


@given(SEEDS, SEEDS)
def test_what_a_sample_gets_does_not_depend_on_its_batch_mates(mine, others):
    together, alone = sample_noise(mine + others, (2, 3)), sample_noise(mine, (2, 3))
    assert torch.equal(together[: len(mine)], alone)
    assert torch.equal(sample_timesteps(mine + others)[: len(mine)], sample_timesteps(mine))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sample_noise([1, 2], (3,))
    sample_timesteps([1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_not_shared_with_the_times():
    noise = sample_noise(range(200), (64,))
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    normals = torch.logit(sample_timesteps(range(200)))
    assert abs(torch.corrcoef(torch.stack([normals, noise[:, 0]]))[0, 1]) < 0.3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_times_are_logit_normal(mean, std):
    times = sample_timesteps(range(2000), mean, std)
    assert ((times > 0) & (times < 1)).all()
    normals = torch.logit(times)
    assert abs(normals.mean() - mean) < 0.1
    assert abs(normals.std() - std) < 0.1


def test_a_bfloat16_picture_is_mixed_in_float32():
    clean = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    noisy, _, _ = interpolate(clean, torch.zeros(1, 1, 1), torch.tensor([1e-3]))
    assert noisy.dtype == torch.float32
    assert noisy.item() == pytest.approx(0.999)
