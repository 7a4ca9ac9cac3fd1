"""Rows that cannot be read are skipped, counted and listed; too many of them end the run."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.record import MissingMetadataError
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.data.world import World
from recipes.cologen.errors import BrokenPictureError, TooManyBrokenError
from recipes.cologen.training.input.batches import Batch, batches
from recipes.cologen.training.input.skips import FIRST_JUDGED, SkipTally

KEEP = DropoutSettings(text=0, source=0)
LENGTH = 20


class Damaged:
    """Records of the world, of which some cannot be read."""

    def __init__(self, *broken, error=BrokenPictureError):
        self.broken, self.error = broken, error

    def __len__(self):
        return LENGTH

    def record(self, index):
        place = index % LENGTH
        if place in self.broken:
            raise self.error(f"x/{place}: torn")
        return World(0).record(place)


def some(records, workers=0, position=0, count=10):
    sampler = BatchSampler(LENGTH, batch_size=4, seed=1)
    sampler.load_state_dict({"position": position})
    return list(islice(batches(records, "inpainting", sampler, KEEP, workers), count))


@pytest.mark.parametrize("error", [BrokenPictureError, MissingMetadataError])
def test_another_row_takes_the_place_of_a_broken_one_and_the_others_stay(error):
    whole, damaged = some(Damaged()), some(Damaged(3, 7, error=error))
    skipped = [problem for batch in damaged for problem in batch.skipped]
    # Ten batches of four are two epochs of twenty: each broken row is drawn twice, and may be a stand-in.
    assert set(skipped) == {"x/3: torn", "x/7: torn"} and len(skipped) >= 4
    same = sum(
        bool(torch.equal(one.target[place], other.target[place]))
        for one, other in zip(whole, damaged, strict=True)
        for place in range(4)
    )
    assert same == 36
    assert all(batch.target.flatten(1).any(1).all() for batch in damaged)  # nothing blank


def test_what_takes_a_rows_place_follows_from_the_position_alone():
    records = Damaged(*range(0, LENGTH, 2))
    for one, other in zip(some(records)[4:], some(records, position=16, count=6), strict=True):
        assert torch.equal(one.source, other.source)
        assert (one.prompts, one.skipped) == (other.prompts, other.skipped)


def test_a_source_without_a_whole_row_ends_at_once():
    with pytest.raises(TooManyBrokenError, match=r"rows in a row could not be read; the first: x/\d+: torn"):
        some(Damaged(*range(LENGTH)))


def batch(size, *skipped):
    empty = torch.from_numpy(np.zeros((size, 3, 1, 1), np.uint8))
    return Batch(empty, empty, ("",) * size, tuple(range(size)), skipped)


def test_skipped_rows_are_listed_once_also_after_a_restart(tmp_path):
    for _ in range(2):
        tally = SkipTally(tmp_path, 0.5, 0)
        for problem in ("a: torn", "b: torn", "a: torn"):
            tally.add("control", batch(4, problem))
        assert tally.skipped == 3
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"stage": "control", "problem": f"{name}: torn"} for name in "ab"]


def test_nothing_is_written_where_nothing_was_skipped(tmp_path):
    SkipTally(tmp_path, 0.0, 1).add("control", batch(4))
    assert not list(tmp_path.iterdir())


def test_too_many_end_the_run_but_not_among_the_first_few(tmp_path):
    tally = SkipTally(tmp_path, 0.01, 1)
    tally.add("control", batch(FIRST_JUDGED - 1, "a", "b", "c"))
    with pytest.raises(
        TooManyBrokenError, match=r"3 of 200 rows .*data\.max_broken=0\.01.*skipped-rank1\.jsonl"
    ):
        tally.add("control", batch(1))
    fine = SkipTally(tmp_path, 0.02, 0)
    fine.add("control", batch(FIRST_JUDGED, "a", "b", "c"))
