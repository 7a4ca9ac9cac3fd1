"""Which groups a set has: the grid that was asked for, the plain projections first, and no name twice."""

import pytest

from benchmarks.cases import COMPILED, EXTENTS, LORA, OURS, PLAIN, cpu_groups, gpu_groups
from benchmarks.schema import SetName


@pytest.mark.parametrize("chosen", EXTENTS)
def test_a_group_begins_with_the_plain_projections_and_names_are_unique(chosen: SetName) -> None:
    found = cpu_groups(chosen)
    assert all(group.cases[0][0] == PLAIN for group in found if group.cases and group.kind != "flux")
    assert len({group.name for group in found}) == len(found)


def test_a_full_run_replaces_every_file_of_a_smaller_one() -> None:
    names = {
        chosen: {group.name for group in cpu_groups(chosen) if group.kind != "generation"}
        for chosen in ("default", "full")
    }
    assert names["default"] < names["full"]


def test_the_full_grid_is_the_one_that_was_asked_for() -> None:
    grid = [group for group in cpu_groups("full") if group.kind == "grid"]
    points = {(point, group.passes) for group in grid for name, point in group.cases if name == OURS}
    assert len(points) == 3 * 3 * 3 * 5 * 2 * 2
    assert {name for group in grid for name, _ in group.cases} == {PLAIN, LORA, OURS}


def test_the_full_picture_is_the_issues() -> None:
    (group,) = (group for group in cpu_groups("full") if group.kind == "generation")
    _, _, side, text, _, steps = group.size
    assert (steps, text, side**2) == (28, 128, 1024)


def test_a_gpus_run_starts_with_checks_and_has_no_name_twice() -> None:
    for chosen in ("full", "rehearsal"):
        names = [group.name for group in gpu_groups(chosen)]
        assert len(set(names)) == len(names)
        assert names[:4] == ["checks-dense", "checks-grouped", "checks-triton", "ceilings"]


def test_a_rehearsal_has_a_group_of_every_kind_and_pass_but_compiles_nothing() -> None:
    full, rehearsal = gpu_groups("full"), gpu_groups("rehearsal")
    assert {(group.kind, group.passes) for group in rehearsal} == {
        (group.kind, group.passes) for group in full
    }
    assert COMPILED not in {name for group in rehearsal for name, _ in group.cases}
