"""Batches hold what the draws say, whatever the workers, and withhold conditions as often as asked."""

from itertools import islice

import numpy as np
import pytest
import torch

from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.record import Example
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World
from recipes.cologen.errors import PictureError
from recipes.cologen.flux.transfer import to_unit_range
from recipes.cologen.training.input.batches import batches, collate, withhold

KEEP = DropoutSettings(text=0, source=0)


def example(side=4):
    picture = np.full((side, side, 3), 200, np.uint8)
    return Example("x", "control", "canny", picture, picture, "a prompt", {"hole": 1})


def some(task="inpainting", workers=0, dropout=KEEP, count=2, position=0):
    sampler = BatchSampler(None, batch_size=3, seed=1)
    sampler.load_state_dict({"position": position, "epoch": 0})
    return list(islice(batches(World(0), task, sampler, dropout, workers), count))


@pytest.mark.parametrize("task", list(VIEWS))
def test_a_batch_of_every_task_has_pictures_prompts_and_seeds(task):
    (batch,) = some(task, count=1)
    assert batch.source.shape == batch.target.shape == (3, 3, 16, 16)
    assert batch.source.dtype == batch.target.dtype == torch.uint8
    assert len(batch.prompts) == len(set(batch.seeds)) == 3
    assert all(batch.prompts)


def test_workers_change_nothing():
    for one, other in zip(some(), some(workers=2), strict=True):
        assert torch.equal(one.target, other.target)
        assert torch.equal(one.source, other.source)
        assert (one.prompts, one.seeds) == (other.prompts, other.seeds)


def test_going_on_from_a_position_skips_what_was_seen():
    assert some(position=3, count=1)[0].seeds == some(count=2)[1].seeds


def test_making_batches_leaves_the_global_generators_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    some(workers=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_certain_dropout_empties_the_prompt_and_blackens_the_source_and_only_them():
    dropped = withhold(example(), 0, DropoutSettings(text=1, source=1))
    assert dropped.prompt == ""
    assert not dropped.source.any()
    assert (dropped.target == 200).all()
    assert (dropped.id, dropped.task, dropped.kind, dropped.meta) == ("x", "control", "canny", {"hole": 1})


def test_no_dropout_gives_the_example_itself():
    given = example()
    assert all(withhold(given, seed, KEEP) is given for seed in range(50))


def test_text_and_source_are_dropped_independently_at_their_rates():
    settings = DropoutSettings(text=0.3, source=0.6)
    dropped = [withhold(example(2), seed, settings) for seed in range(1500)]
    text = np.array([not one.prompt for one in dropped])
    source = np.array([not one.source.any() for one in dropped])
    assert abs(text.mean() - 0.3) < 0.05
    assert abs(source.mean() - 0.6) < 0.05
    assert abs((text & source).mean() - 0.18) < 0.05


def test_pictures_of_two_sizes_are_refused_with_their_names():
    with pytest.raises(PictureError, match=r"differ in size: x is \(4, 4\), x is \(6, 6\).*--set data\.size"):
        collate([example(4), example(6)])


def test_channels_come_first_and_the_range_is_symmetric():
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 1, 2] = 255
    batch = collate([Example("x", "t", "k", picture, picture, "p")])
    pixels = to_unit_range(batch.target, torch.device("cpu"))
    assert pixels.shape == (1, 3, 2, 3)
    assert pixels[0, 2, 0, 1] == 1.0
    assert pixels.min() == -1.0
    assert pixels.dtype == torch.float32
