"""Pictures get the size nearest to their shape; records of one bucket come together, and none is lost."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recipes.cologen.config.data import BucketSettings
from recipes.cologen.data.bucket_order import BucketOrder
from recipes.cologen.data.buckets import Bucket, Buckets, bucketed, buckets_of
from recipes.cologen.data.framing import frame_of, framed
from recipes.cologen.data.raw import RawPair, RawRecord
from recipes.cologen.data.record import Origin
from recipes.cologen.data.sampler import BatchSampler, BatchSizeError

SIDES = st.integers(8, 400)
LADDER = buckets_of(BucketSettings(resolution=128))
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def members_of(lengths):
    numbers = np.random.default_rng(0).permutation(sum(lengths))
    return np.split(numbers, np.cumsum(lengths)[:-1])


def gradient(height, width):
    """Brighter to the right in red, brighter downwards in green."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8))


def raw(picture, *pairs):
    origin = Origin("made", None, "cc0", picture.width, picture.height)
    return RawRecord("one", picture, "a picture", origin, pairs=tuple(pairs))


def test_generated_sizes_hold_about_as_many_pixels_and_are_multiples():
    sizes = buckets_of(BucketSettings(resolution=512)).sizes
    assert (512, 512) in sizes and len(sizes) == len(set(sizes)) == 11
    assert all(height % 16 == width % 16 == 0 for height, width in sizes)
    assert all(0.9 < height * width / 512**2 < 1.1 for height, width in sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)


@given(SIDES, SIDES)
def test_a_wide_picture_gets_a_wide_bucket_and_turned_a_tall_one(height, width):
    found = LADDER.nearest(height, width)
    assert LADDER.nearest(width, height) == found[::-1]
    shapes = {size: abs(np.arctan2(*size) - np.arctan2(height, width)) for size in LADDER.sizes}
    # By angle, which is diffusers' measure for sizes with diagonals of one length; ours differ by a tenth.
    assert shapes[found] <= 1.35 * min(shapes.values()) + 1e-9
    if height != width and min(height, width) / max(height, width) < 0.85:
        assert (found[0] < found[1]) == (height < width)


CLEAR = st.integers(60, 150)


@settings(max_examples=30)
@given(CLEAR, CLEAR, CLEAR, CLEAR)
def test_target_and_source_are_framed_each_to_its_own_bucket_and_not_turned(height, width, high, wide):
    pairs = (
        RawPair("editing", gradient(high, wide), "edit"),
        RawPair("customization", gradient(width, height), "same"),
    )
    record = framed(raw(gradient(height, width), *pairs), LADDER)
    assert record.image.shape[:2] == LADDER.nearest(height, width)
    assert record.pairs[0].image.shape[:2] == LADDER.nearest(high, wide)
    assert record.pairs[1].image.shape[:2] == LADDER.nearest(width, height)
    for image in (record.image, record.pairs[0].image, record.pairs[1].image):
        levels = image.astype(int)
        assert (np.diff(levels[..., 0], axis=1) >= -2).all() and levels[0, -1, 0] > levels[0, 0, 0] + 20
        assert (np.diff(levels[..., 1], axis=0) >= -2).all() and levels[-1, 0, 1] > levels[0, 0, 1] + 20


def test_all_pairs_of_a_task_get_the_bucket_of_the_first():
    pairs = [RawPair("editing", gradient(40, 80), "a"), RawPair("editing", gradient(80, 40), "b")]
    record = framed(raw(gradient(40, 40), *pairs), LADDER)
    assert {pair.image.shape[:2] for pair in record.pairs} == {LADDER.nearest(40, 80)}


SIZES = st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=30)


@given(SIZES, st.sets(st.integers(0, 29)))
def test_every_record_is_in_exactly_one_compound_bucket_the_right_one(sizes, unread):
    table = np.array([(0, 0, 0, 0) if at in unread else row for at, row in enumerate(sizes)], np.int32)
    records = bucketed(table, LADDER)
    assert sorted(np.concatenate(records.members).tolist()) == list(range(len(sizes)))
    for bucket, members in zip(*records, strict=True):
        for at in members:
            if at not in unread:
                target, source = tuple(table[at, :2]), tuple(table[at, 2:])
                assert bucket == Bucket(LADDER.nearest(*target), LADDER.nearest(*source))
    known = [sum(int(at not in unread) for at in members) for members in records.members]
    assert known == sorted(known, reverse=True)
    assert all(not unread & set(members.tolist()) for members in records.members[1:])


@given(LENGTHS, st.integers(1, 8), st.integers(0, 5), st.integers(1, 12))
def test_every_group_is_of_one_bucket_and_no_record_is_lost(lengths, group, seed, epochs):
    members = members_of(lengths)
    order = BucketOrder(members, group, seed)
    last = sum(epochs * length // group for length in lengths)
    places = [order.at(position) for position in range(last * group)]
    for start in range(0, len(places), group):
        assert len({place.bucket for place in places[start : start + group]}) == 1
    counts = Counter(place.record_index for place in places)
    for number, of in enumerate(members):
        # What a bucket has not filled a group with by then is less than a group, and comes first in the next.
        given_out = epochs * len(of) // group * group
        assert sum(counts[index] for index in of.tolist()) == given_out
        rounds = given_out // len(of)
        assert {counts[index] for index in of.tolist()} <= {rounds, rounds + 1}
        assert all(place.record_index in of for place in places if place.bucket == number)
    assert [order.epoch(position) for position in range(last * group)] == sorted(
        order.epoch(position) for position in range(last * group)
    )


@given(LENGTHS, st.integers(1, 6), st.integers(0, 5), st.lists(st.integers(0, 10**7), min_size=1, max_size=8))
def test_a_position_is_found_from_anywhere(lengths, group, seed, positions):
    walked = BucketOrder(members_of(lengths), group, seed)
    for position in positions:
        fresh = BucketOrder(members_of(lengths), group, seed)
        assert fresh.at(position) == walked.at(position)
        assert fresh.epoch(position) == walked.epoch(position)


LAYOUTS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
"""Micro-batch, micro-batches a group, ranks, and what makes groups fit the batch."""


@given(LAYOUTS, LENGTHS, st.integers(0, 5), st.integers(0, 4))
def test_ranks_deal_what_one_process_would_in_micro_batches_of_one_bucket_and_resume(
    layout, lengths, seed, stop
):
    micro, per_group, ranks, factor = layout
    group = micro * per_group
    batch = group * ranks * per_group * factor

    def sampler(**where):
        order = BucketOrder(members_of(lengths), group, seed)
        return BatchSampler(sum(lengths), batch_size=batch, seed=seed, order=order, **where)

    def dealt(one, steps):
        stream = iter(one)
        return [list(islice(stream, one.micro_batches)) for _ in range(steps)]

    alone = sampler(micro_batch=batch if group == batch else group)
    expected = [sorted(draw for part in step for draw in part) for step in dealt(alone, stop + 2)]
    found = [[] for _ in expected]
    for rank in range(ranks):
        where = {"micro_batch": micro, "rank": rank, "world_size": ranks}
        first, second = sampler(**where), sampler(**where)
        steps = dealt(first, stop)
        second.load_state_dict(first.state_dict())
        steps += dealt(second, 2)
        for number, step in enumerate(steps):
            assert [len(part) for part in step] == [micro] * (batch // micro // ranks)
            assert all(len({draw.bucket for draw in part}) == 1 for part in step)
            found[number] += [draw for part in step for draw in part]
    assert [sorted(step) for step in found] == expected


def test_groups_that_do_not_fit_are_refused():
    order = BucketOrder(members_of([5]), 4, 0)
    for options in ({"batch_size": 6, "micro_batch": 2}, {"batch_size": 24, "micro_batch": 3}):
        with pytest.raises(BatchSizeError, match=r"data\.buckets\.group should divide"):
            BatchSampler(5, seed=0, order=order, **options)


def test_sizes_and_resolution_exclude_each_other_and_none_is_off():
    with pytest.raises(ValueError, match="both given"):
        BucketSettings(sizes=((16, 16),), resolution=16)
    with pytest.raises(ValueError, match="twice"):
        BucketSettings(sizes=((16, 16), (16, 16)))
    assert buckets_of(BucketSettings()) is None and not BucketSettings().on
    assert buckets_of(BucketSettings(sizes=((16, 24),))) == Buckets(((16, 24),))


@given(SIDES, SIDES, SIDES, SIDES)
def test_what_is_cut_out_lies_inside_the_picture_and_has_the_shape_asked_for(width, height, high, wide):
    frame = frame_of((width, height), (high, wide))
    left, top, right, bottom = frame.crop
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert (frame.height, frame.width) == (high, wide)
    assert (right - left) * high == pytest.approx((bottom - top) * wide)
    assert left == 0 or top == 0 or min(left, top) < 1e-9
    assert left == pytest.approx(width - right) and top == pytest.approx(height - bottom)
