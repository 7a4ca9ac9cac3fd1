"""The sampler deals the same stream whatever the ranks, the micro-batches and the interruptions."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data.sampler import BatchSampler, BatchSizeError
from recipes.cologen.data.seeding import derive_seed

LAYOUTS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
"""Micro-batch, ranks, micro-batches a step."""
LENGTHS = st.one_of(st.none(), st.integers(1, 12))


def draws_of_steps(sampler, steps):
    """This rank's draws, step by step."""
    stream = iter(sampler)
    return [[draw for micro in islice(stream, sampler.micro_batches) for draw in micro] for _ in range(steps)]


@given(LAYOUTS, LENGTHS, st.integers(0, 9))
def test_ranks_and_micro_batches_deal_what_one_process_would(layout, length, seed):
    micro, ranks, count = layout
    batch = micro * ranks * count
    alone = draws_of_steps(BatchSampler(length, batch_size=batch, seed=seed), 3)
    shared = [
        draws_of_steps(
            BatchSampler(length, batch_size=batch, micro_batch=micro, seed=seed, rank=rank, world_size=ranks),
            3,
        )
        for rank in range(ranks)
    ]
    for step in range(3):
        together = [draw for rank in shared for draw in rank[step]]
        assert sorted(together) == sorted(alone[step])
        assert {len(rank[step]) for rank in shared} == {batch // ranks}


@given(LAYOUTS, LENGTHS, st.integers(0, 9), st.integers(0, 5))
def test_going_on_from_a_saved_position_equals_not_stopping(layout, length, seed, stop):
    micro, ranks, count = layout
    settings = {"batch_size": micro * ranks * count, "micro_batch": micro, "seed": seed, "world_size": ranks}
    whole = BatchSampler(length, rank=ranks - 1, **settings)
    expected = draws_of_steps(whole, stop + 3)
    first = BatchSampler(length, rank=ranks - 1, **settings)
    draws_of_steps(first, stop)
    second = BatchSampler(length, rank=ranks - 1, **settings)
    second.load_state_dict(first.state_dict())
    assert draws_of_steps(second, 3) == expected[stop:]
    assert second.state_dict() == whole.state_dict()


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_each_epoch_holds_every_record_once_in_another_order(length, batch, seed):
    sampler = BatchSampler(length, batch_size=batch, seed=seed)
    stream = [sampler.at(position).record_index for position in range(3 * length)]
    epochs = [stream[start : start + length] for start in range(0, 3 * length, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length > 7:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_record_seen_again_gets_another_seed():
    sampler = BatchSampler(2, batch_size=2, seed=0)
    seeds = {sampler.at(position).seed for position in range(40)}
    assert len(seeds) == 40


def test_an_endless_source_is_never_repeated_and_seeds_read_other_parts_of_it():
    first = {BatchSampler(None, batch_size=1, seed=0).at(position).record_index for position in range(50)}
    second = {BatchSampler(None, batch_size=1, seed=1).at(position).record_index for position in range(50)}
    assert len(first) == 50
    assert not first & second
    assert min(first | second) >= 0


def test_the_epoch_is_counted():
    sampler = BatchSampler(4, batch_size=3, seed=0)
    draws_of_steps(sampler, 3)
    assert sampler.state_dict() == {"position": 9, "epoch": 2}
    assert BatchSampler(None, batch_size=3, seed=0).epoch == 0


@pytest.mark.parametrize(
    ("batch", "micro", "ranks"), [(3, None, 2), (8, 3, 1), (0, None, 1), (1, None, 2), (8, 0, 1)]
)
def test_a_batch_that_cannot_be_dealt_evenly_is_refused(batch, micro, ranks):
    with pytest.raises(BatchSizeError, match=r"cannot be dealt evenly.*stages\.\*\.batch_size"):
        BatchSampler(None, batch_size=batch, micro_batch=micro, seed=0, world_size=ranks)


def test_an_empty_source_is_refused():
    with pytest.raises(BatchSizeError, match="at least one"):
        BatchSampler(0, batch_size=1, seed=0)


def test_a_position_of_another_batch_size_is_refused():
    with pytest.raises(BatchSizeError, match="not the end of a batch of 4"):
        BatchSampler(None, batch_size=4, seed=0).load_state_dict({"position": 6, "epoch": 0})


def test_derived_seeds_depend_on_every_part_its_kind_and_its_place():
    seeds = [
        derive_seed(0),
        derive_seed(1),
        derive_seed("0"),
        derive_seed(0, 1),
        derive_seed(1, 0),
        derive_seed("0", 1),
        derive_seed("01"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", 1) == 4859973583254556513  # on every machine, so that a run can be moved
