"""A result's lines for a terminal."""

from benchmarks.console import lines
from benchmarks.store import CPU, read_all


def test_every_number_of_a_committed_result_has_a_line() -> None:
    for result in read_all(CPU):
        wanted = len(result.times) + len(result.memory) + len(result.steps) + len(result.pictures)
        assert len(list(lines(result))) == wanted + len(result.pipelines) + len(result.shares)
