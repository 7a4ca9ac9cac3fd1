"""Flow matching: ends of the path, seeds that decide alone, the law of times."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.training.flow import draw_noise, draw_timesteps, flow_sample

SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_time_0_is_the_picture_and_time_1_the_noise(seeds, tokens, channels):
    noise = draw_noise(seeds, (tokens, channels))
    clean = torch.randn(noise.shape)
    assert torch.equal(flow_sample(clean, noise, torch.zeros(len(seeds))).noisy, clean)
    assert torch.equal(flow_sample(clean, noise, torch.ones(len(seeds))).noisy, noise)


@given(SEEDS)
def test_following_the_velocity_back_arrives_at_the_picture(seeds):
    noise, times = draw_noise(seeds, (3, 2)), draw_timesteps(seeds)
    clean = torch.randn(noise.shape)
    sample = flow_sample(clean, noise, times)
    torch.testing.assert_close(sample.noisy - times[:, None, None] * sample.velocity, clean)


@given(SEEDS, SEEDS)
def test_what_a_sample_gets_does_not_depend_on_its_batch_mates(mine, others):
    together, alone = draw_noise(mine + others, (2, 3)), draw_noise(mine, (2, 3))
    assert torch.equal(together[: len(mine)], alone)
    assert torch.equal(draw_timesteps(mine + others)[: len(mine)], draw_timesteps(mine))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_noise([1, 2], (3,))
    draw_timesteps([1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_not_shared_with_the_times():
    noise = draw_noise(range(200), (64,))
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    normals = torch.logit(draw_timesteps(range(200)))
    assert abs(torch.corrcoef(torch.stack([normals, noise[:, 0]]))[0, 1]) < 0.3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_times_are_logit_normal(mean, std):
    times = draw_timesteps(range(2000), mean, std)
    assert ((times > 0) & (times < 1)).all()
    normals = torch.logit(times)
    assert abs(normals.mean() - mean) < 0.1
    assert abs(normals.std() - std) < 0.1


def test_a_bfloat16_picture_is_mixed_in_float32():
    clean = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    sample = flow_sample(clean, torch.zeros(1, 1, 1), torch.tensor([1e-3]))
    assert sample.noisy.dtype == torch.float32
    assert sample.noisy.item() == pytest.approx(0.999)
