"""Where kernels cross, and the threshold that follows."""

import pytest

from benchmarks.cases import at
from benchmarks.probes import crossing, crossings, threshold
from benchmarks.schema import Row


def test_kernels_cross_where_they_take_equally_long() -> None:
    dense = [(16, 1.0), (64, 2.0), (256, 4.0), (1024, 16.0)]
    assert crossing(dense, [(size, 4.0) for size, _ in dense]) == pytest.approx(256)
    assert 64 < crossing(dense, [(size, 3.0) for size, _ in dense]) < 256
    assert crossing(dense, [(size, 0.5) for size, _ in dense]) == 16, "no slower from the first point on"
    assert crossing(dense, [(size, 99.0) for size, _ in dense]) is None


def test_a_threshold_is_proposed_from_the_crossings() -> None:
    words, _, held, then = threshold({"triton, r=16": 256.0, "triton, r=128": 400.0, "grouped, r=16": 900.0})
    assert held is True
    assert words == "triton from 320, grouped from 900"
    assert "320, then triton" in then
    with pytest.raises(LookupError, match="dense is faster"):
        threshold({})


def test_crossings_are_of_even_routing_recorded_with_a_cold_cache() -> None:
    def rows(case: str, ms: float, **more: str) -> list[Row]:
        points = [at(64, 32, 8, experts, dtype="bfloat16") for experts in (1, 2, 4)]
        dense = {1: 1.0, 2: 2.0, 4: 4.0}
        return [
            Row(
                case=case, point=point, median_ms=dense[point.experts] if case == "prw dense" else ms,
                iqr_ms=0, ratio=1, ratio_iqr=0, **({"launch": "graph", "cache": "cold"} | more),
            )
            for point in points
        ]  # fmt: skip

    found = rows("prw dense", 0) + rows("prw triton", 2.0) + rows("prw grouped", 9.0)
    found += rows("prw triton", 0.1, cache="warm") + rows("prw", 0.1)
    assert crossings(found, 64) == {"triton, r=8": pytest.approx(16)}
    assert crossings(found, 32) == {}
