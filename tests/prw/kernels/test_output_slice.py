"""Output slices: their indices and views name the same columns, and adding to them changes no other."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prw.kernels import OutputSlice, add_to_slices


@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 5), st.integers(0, 5))
def test_the_view_and_the_indices_are_the_same_columns(groups, before, columns, after):
    one = OutputSlice(groups, before + columns + after, before, before + columns)
    output = torch.randn(3, groups * one.width)
    assert one.size == len(one.indices()) == groups * columns
    assert torch.equal(one.view(output).flatten(1), output[:, one.indices()])


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_only_the_rows_meant_change_and_the_others_keep_their_bits(groups, before, keys, values, after):
    width = before + keys + values + after
    k = OutputSlice(groups, width, before, before + keys)
    v = OutputSlice(groups, width, before + keys, before + keys + values)
    output = torch.randn(2, groups * width)
    output[0, 0] = -0.0
    deltas = [(rows, torch.rand(2, rows.size) + 1) for rows in (v, k)]
    result = add_to_slices(output, deltas)
    expected = output.clone()
    for rows, delta in deltas:
        expected[:, rows.indices()] += delta
    assert torch.equal(result, expected)
    others = torch.ones(groups * width, dtype=torch.bool)
    others[torch.cat([k.indices(), v.indices()])] = False
    assert torch.equal(result[:, others].signbit(), output[:, others].signbit())
