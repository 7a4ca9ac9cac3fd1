"""The clock is fair, memory is counted whole, and the model of a GPU says what its page says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.bench_flux import GEOMETRIES, models
from benchmarks.flux_steps import inputs, training_step
from benchmarks.gpu_model import Ceilings, base, dense_ratio, expand, routed_ratio, shrink
from benchmarks.group_run import done
from benchmarks.groups import EXTENTS, KINDS, LORA, PLAIN, groups
from benchmarks.measuring import Case, interleaved, paired, spread
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.origin import origin
from benchmarks.schema import Kept, Result, Where, write


class Clockwork:
    """Stands in for pytest-benchmark's fixture: a round takes as many seconds as its number."""

    disabled = False

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            arguments, _ = setup()
            target(*arguments)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=list(range(1, rounds + 1))))


def test_cases_run_in_turn_and_keep_their_seconds() -> None:
    seen: list[str] = []
    cases = {
        name: Case(lambda name=name: seen.append(name), lambda name=name: seen.append(f"clear {name}"))
        for name in ("a", "b", "c")
    }
    seconds = interleaved(Clockwork(), cases, rounds=20)
    assert seen[::2] == [f"clear {name}" for name in seen[1::2]]
    ran = seen[1::2]
    rounds = [ran[first : first + 3] for first in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {one[0] for one in rounds} == {"a", "b", "c"}, "no case always comes first"
    for name, taken in seconds.items():
        assert taken == [second for second, which in enumerate(ran, start=1) if which == name]


def test_paired_ratios_do_not_see_a_machine_that_slows_down() -> None:
    base = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert paired([2 * one for one in base], base) == (2.0, 0.0)
    assert spread(base) == (3.0, 2.0)
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], base)


def test_saved_memory_is_each_storage_once_without_parameters() -> None:
    layer, hidden = nn.Linear(8, 8), torch.randn(16, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        halves = layer(hidden).chunk(2, dim=-1)  # two views of one storage
        return halves[0].square().sum() + halves[1].square().sum()

    floats = hidden.numel() + 16 * 8
    assert saved_bytes(forward, layer.parameters()) == 4 * floats
    assert saved_bytes(forward, ()) == 4 * (floats + layer.weight.numel())


def test_peak_memory_is_above_the_resting_level_and_counts_what_was_freed() -> None:
    resting = torch.ones(1000)

    def run() -> torch.Tensor:
        first = resting + 1
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(run) == pytest.approx(2 * 4000, abs=256)  # the allocator's own rounding


def test_a_group_begins_with_the_plain_projections_and_names_are_unique() -> None:
    for chosen in EXTENTS:
        found = [group for kind in KINDS for group in groups(kind, chosen)]
        assert all(group.cases[0][0] == PLAIN for group in found)
        assert len({group.name for group in found}) == len(found)


def test_a_full_run_replaces_every_file_of_a_smaller_one() -> None:
    names = {
        chosen: {group.name for kind in KINDS for group in groups(kind, chosen)}
        for chosen in ("default", "full")
    }
    assert names["default"] < names["full"]


def test_the_full_grid_is_the_one_that_was_asked_for() -> None:
    points = {
        (point.tokens, point.width, point.rank, point.experts, point.granularity, group.passes)
        for group in groups("grid", "full")
        for name, point in group.cases
        if name == "prw"
    }
    assert len(points) == 3 * 3 * 3 * 5 * 2 * 2
    assert {name for group in groups("grid", "full") for name, _ in group.cases} == {PLAIN, LORA, "prw"}


def test_a_result_of_other_code_is_measured_again(tmp_path: Path) -> None:
    at = Where(
        tokens=1, width=1, rank=0, experts=0, granularity="token", batch=1, skew="uniform", dtype="float32"
    )
    kept = [Kept(case=PLAIN, where=at, saved_mib=0, peak_mib=1)]
    here = origin()
    result = Result(kind="memory", name="memory", set="full", origin=here, rounds=1, kept=kept)
    assert not done(tmp_path, "memory", "full")
    write(result, tmp_path)
    assert done(tmp_path, "memory", "full")
    assert not done(tmp_path, "memory", "default")
    older = here.model_copy(update={"code": "0" * 16})
    write(result.model_copy(update={"origin": older}), tmp_path)
    assert not done(tmp_path, "memory", "full")


def test_flux_has_lora_and_pool_on_the_same_modules() -> None:
    (geometry,) = GEOMETRIES["smoke"]
    built = models(geometry)
    trained = {
        name: {
            key.rsplit(".", 3)[0].removeprefix("base_model.model.")
            for key, p in model.named_parameters()
            if p.requires_grad
        }
        for name, (model, _, _) in built.items()
    }
    assert trained["plain FLUX"] == set()
    assert trained[LORA] == trained["prw, N=1"] == trained["prw, N=8"]
    assert len(trained[LORA]) == 2 * (geometry.double + geometry.single)


def test_a_training_step_moves_the_newest_expert_alone() -> None:
    (geometry,) = GEOMETRIES["smoke"]
    model, weave, _ = models(geometry)["prw, N=5"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    case = training_step(model, weave, inputs(geometry))
    case.run()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all("4.default" in name for name in moved)
    case.clear()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_of_a_gpu_agrees_with_the_arithmetic_it_was_drawn_from() -> None:
    """Figures of the design's table for an H100 at T = 4096, d = 3072, in microseconds and as ratios."""
    ceilings = Ceilings()
    assert ceilings.balance == pytest.approx(266)
    assert 1e6 * base(4096, 3072).seconds(ceilings) == pytest.approx(194, rel=0.01)
    assert 1e6 * shrink(4096, 3072, 128, 128).seconds(ceilings) == pytest.approx(9.6, rel=0.03)
    assert 1e6 * expand(4096, 3072, 128, 128).seconds(ceilings) == pytest.approx(18, rel=0.03)
    assert 1e6 * expand(4096, 3072, 128, 128, writes=False).seconds(ceilings) == pytest.approx(35, rel=0.03)
    assert dense_ratio(4096, 3072, 128, 1, ceilings) == pytest.approx(1.143, abs=0.01)
    assert dense_ratio(4096, 3072, 128, 4, ceilings) == pytest.approx(1.36, abs=0.02)
    assert routed_ratio(4096, 3072, 128, 8, ceilings) == pytest.approx(1.258, abs=0.02)
    assert routed_ratio(4096, 3072, 16, 64, ceilings) == pytest.approx(1.249, abs=0.02)
