"""Names of projections: which of queries, keys and values each of them says."""

import pytest

from prw.tuner.targets.names import role_of


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("Wk", "k"),
        ("valuesProj", "v"),
        ("linear_q", "q"),
        ("queries_keys_values", "qkv"),
        ("kv_mapper", ""),
        ("dense", ""),
        ("k_norm", ""),
    ],
)
def test_names_say_what_a_projection_makes(name, letters):
    assert role_of(name).letters == letters
