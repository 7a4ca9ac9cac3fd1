"""What cannot work is refused before anything is loaded, for every stage, with the setting that mends it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.config.data import BucketSettings
from recipes.cologen.data.bucket_order import BucketOrder
from recipes.cologen.data.buckets import buckets_of
from recipes.cologen.data.sampler import BatchSampler, BatchSizeError
from recipes.cologen.training.preflight import PreflightError, cheap_problems
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import arrow_cache, config, write_folder

__all__ = ["arrow_cache"]

SIDE = 4
"""Pixels of a token of the tests' base."""


def bucketed_run(base_path, *overrides):
    return make_config(base_path, "data.source=folder:x", "validation.samples=0", *overrides)


def about(base_path, processes, *overrides):
    asked = bucketed_run(base_path, *overrides)
    return cheap_problems(asked, asked.stage_names, base_path, processes)


@given(sizes=st.sets(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=4))
def test_bucket_sizes_must_be_what_the_base_reads_and_the_advice_is(base_path, sizes):
    found = about(base_path, 1, f"data.buckets.sizes={json.dumps(sorted(sizes))}")
    wrong = [size for size in sizes if any(length % SIDE for length in size)]
    assert len(found) == bool(wrong)
    for problem in found:
        assert problem.about == "picture size" and all(str(list(size)) in problem.message for size in wrong)
        advice = problem.message.partition("--set ")[2].removesuffix(".")
        assert about(base_path, 1, advice) == []


@given(resolution=st.integers(1, 120), step=st.integers(1, 24))
def test_generated_buckets_too(base_path, resolution, step):
    asked = [f"data.buckets.resolution={resolution}", f"data.buckets.step={step}"]
    sizes = buckets_of(BucketSettings(resolution=resolution, step=step)).sizes
    found = about(base_path, 1, *asked)
    assert len(found) == any(length % SIDE for size in sizes for length in size)
    for problem in found:
        advice = problem.message.partition("--set ")[2].removesuffix(".")
        assert advice.startswith("data.buckets.step=") and about(base_path, 1, *asked, advice) == []


@given(
    batch=st.integers(1, 12),
    micro=st.none() | st.integers(1, 6),
    group=st.none() | st.integers(1, 12),
    processes=st.integers(1, 3),
)
def test_groups_are_refused_for_every_stage_exactly_where_a_stage_would_be(
    base_path, batch, micro, group, processes
):
    numbers = {"batch_size": batch, "micro_batch": micro, "world_size": processes, "seed": 0}
    try:
        BatchSampler(4, order=BucketOrder([np.arange(4)], group or batch, 0), **numbers)
    except BatchSizeError:
        works = False
    else:
        works = True
    values = {"micro_batch": micro, "group": group}
    places = {"micro_batch": "machine.micro_batch", "group": "data.buckets.group"}
    given = [f"{places[name]}={value}" for name, value in values.items() if value is not None]
    found = about(
        base_path, processes, "data.buckets.resolution=32", f"stages.control.batch_size={batch}", *given
    )
    assert any("'control'" in problem.message for problem in found) == (not works)


def test_a_group_that_only_the_last_stage_cannot_take_is_found_before_the_first(base_path, tmp_path, run):
    (tmp_path / "data").mkdir()
    path = write_folder(tmp_path / "data")
    asked = ["data.buckets.sizes=[[16,24]]", f"data.buckets.index={tmp_path}", "data.buckets.group=2"]
    asked = config(base_path, path, *asked, "stages.editing.batch_size=3")
    with pytest.raises(PreflightError, match=r"stage 'editing'(.|\n)*data\.buckets\.group should divide"):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
