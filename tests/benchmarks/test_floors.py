"""Floors are known numbers, and the model of a GPU says what its page says."""

import pytest

from benchmarks.cases import at
from benchmarks.floors import (
    Limits,
    base,
    dense_ratio,
    expand,
    forward_floor,
    least_seconds,
    routed_ratio,
    shrink,
    training_floor,
)
from benchmarks.schema import Ceiling, Pass

H100 = Ceiling(tokens=4096, width=3072, flops_per_s=798e12, bytes_per_s=3.0e12)


def test_floors_are_known_numbers() -> None:
    assert forward_floor(128, 3072) == pytest.approx(1.0833, abs=1e-4)
    assert training_floor(128, 3072, newest_share=1.0) == pytest.approx(1.125)
    assert training_floor(128, 3072, newest_share=0.25) == pytest.approx(1.09375)
    assert training_floor(16, 512, newest_share=0.0, choices=2) == pytest.approx(1.125)


@pytest.mark.parametrize(
    ("rank", "passes", "wanted"),
    [(0, "forward", 1.0), (128, "forward", 1.0833), (16, "forward", 1.0104), (128, "training", 1.0885)],
)
def test_a_floor_is_what_arithmetic_allows_while_arithmetic_is_the_limit(
    rank: int, passes: Pass, wanted: float
) -> None:
    experts = 8 if rank else 0
    plain, point = at(4096, 3072), at(4096, 3072, rank, experts)
    floor = least_seconds(point, passes, H100, experts, 1 / 8)
    assert floor / least_seconds(plain, passes, H100, 0, 0.0) == pytest.approx(wanted, abs=1e-3)
    slow = H100.model_copy(update={"bytes_per_s": 1e9})
    assert least_seconds(point, passes, slow, experts, 1 / 8) > floor


def test_the_model_of_a_gpu_agrees_with_the_arithmetic_it_was_made_from() -> None:
    """Figures of the design's table for an H100 at T = 4096, d = 3072, in microseconds and as ratios."""
    limits = Limits()
    assert 1e6 * base(4096, 3072).seconds(limits) == pytest.approx(194, rel=0.01)
    assert 1e6 * shrink(4096, 3072, 128, 128).seconds(limits) == pytest.approx(9.6, rel=0.03)
    assert 1e6 * expand(4096, 3072, 128, 128).seconds(limits) == pytest.approx(18, rel=0.03)
    assert 1e6 * expand(4096, 3072, 128, 128, writes=False).seconds(limits) == pytest.approx(35, rel=0.03)
    assert dense_ratio(4096, 3072, 128, 1, limits) == pytest.approx(1.143, abs=0.01)
    assert dense_ratio(4096, 3072, 128, 4, limits) == pytest.approx(1.36, abs=0.02)
    assert routed_ratio(4096, 3072, 128, 8, limits) == pytest.approx(1.258, abs=0.02)
    assert routed_ratio(4096, 3072, 16, 64, limits) == pytest.approx(1.249, abs=0.02)
