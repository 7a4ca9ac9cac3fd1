"""The plan of the CPU's backend: segments of one expert each, in chunks that cover every choice once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prw.kernels import cpu

DECISIONS = st.tuples(
    st.integers(0, 9), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99)
)


def planned(decision):
    items, k, tokens, experts, seed = decision
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(items, experts, generator=generator).argsort(-1)[:, :k]
    ids[torch.rand(ids.shape, generator=generator) < 0.3] = -1
    return ids, cpu.plan(ids, experts, tokens)


@given(DECISIONS)
def test_segments_name_the_expert_of_every_choice(decision):
    ids, plan = planned(decision)
    found, tokens = [], decision[2]
    for segment in plan.segments:
        assert segment.start == len(found)
        found += [segment.expert] * (segment.stop - segment.start)
    assert found == plan.per_choice(ids).tolist()
    if plan.rows is not None:
        ids_of_rows = ids.repeat_interleave(tokens, 0)[plan.rows]
        assert all(expert in row for expert, row in zip(found, ids_of_rows.tolist(), strict=True))


@given(DECISIONS, st.integers(1, 8))
def test_chunks_cover_every_choice_once_and_never_mix_experts(decision, rows):
    ids, plan = planned(decision)
    covered = []
    for chunk in plan.chunks(cpu.SCRATCH // rows):
        assert sum(chunk.lengths) == chunk.here.stop - chunk.here.start
        covered += [
            expert for expert, length in zip(chunk.experts, chunk.lengths, strict=True) for _ in range(length)
        ]
    assert covered == plan.per_choice(ids).tolist()


@given(DECISIONS)
def test_values_go_to_choices_and_back_by_the_transpose(decision):
    ids, plan = planned(decision)
    values, there = torch.rand(ids.shape, dtype=torch.float64), torch.rand(ids.numel() * decision[2]).double()
    summed = plan.per_item(there)
    assert summed.shape == ids.shape
    torch.testing.assert_close((plan.per_choice(values) * there).sum(), (values * summed).sum())


@pytest.mark.parametrize("tokens", [1, 3])
def test_one_expert_for_all_is_one_segment_and_gathers_nothing(tokens):
    plan = cpu.plan(torch.zeros(5, 1, dtype=torch.int64), 1, tokens)
    assert plan.segments == (cpu.Segment(0, 0, 5 * tokens),)
    assert plan.order is None and plan.rows is None and plan.all_routed
