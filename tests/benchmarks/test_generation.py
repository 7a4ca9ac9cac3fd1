"""What draws whole pictures: equal footing, and verdicts that follow from the numbers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline

from benchmarks.bench_generation import SCENES
from benchmarks.flux_steps import Geometry, base_weights, plain, with_pool
from benchmarks.generation import (
    CACHED,
    KONTEXT,
    PLAIN_TEXT,
    UNCACHED,
    by_cologen,
    by_diffusers,
    drawers,
    given,
)
from benchmarks.origin import origin
from benchmarks.report.found import Found
from benchmarks.report.verdicts import generation
from benchmarks.schema import Drawn, Result

GEOMETRY = Geometry(heads=2, head=32, double=1, single=1, side=3, text=5, rank=4)


def test_experts_that_do_nothing_and_no_source_leave_what_flux_pipeline_draws() -> None:
    weights, inputs = base_weights(GEOMETRY), given(GEOMETRY)
    model = plain(GEOMETRY, weights).eval()
    expected = by_diffusers(FluxPipeline, model, inputs)(2)
    drawn = by_cologen(plain(GEOMETRY, weights).eval(), inputs._replace(picture=None), "zero")(2)
    assert torch.equal(drawn, expected)


def test_every_way_draws_another_picture_of_the_same_size() -> None:
    drawn = {name: drawer.draw(2) for name, drawer in drawers(GEOMETRY).items()}
    assert {picture.shape for picture in drawn.values()} == {(1, 9, 64)}
    assert not any(torch.equal(one, other) for one, other in pairwise(drawn.values()))
    assert all(picture.isfinite().all() for picture in drawn.values())


def test_kontext_and_cologen_read_the_source() -> None:
    weights, inputs = base_weights(GEOMETRY), given(GEOMETRY)
    for source, picture in ((inputs.source, inputs.picture), (-inputs.source, 1 - inputs.picture)):
        other = inputs._replace(picture=picture)
        side = 8 * inputs.noise.shape[-1]
        kontext = by_diffusers(
            FluxKontextPipeline, plain(GEOMETRY, weights).eval(), inputs, image=source, max_area=side**2
        )(2)
        cached = by_cologen(with_pool(GEOMETRY, weights, 1)[0].eval(), other, "zero")(2)
        if source is inputs.source:
            before = kontext, cached
    assert not torch.equal(before[0], kontext)
    assert not torch.equal(before[1], cached)


def test_the_full_scene_is_the_issues() -> None:
    scene = SCENES["full"]
    assert (scene.steps, scene.geometry.text, scene.tokens) == (28, 128, 1024)


def row(case: str, experts: int, ratio: float, kontext: float, time: float = 1, weights: float = 1) -> Drawn:
    return Drawn(
        case=case,
        steps=28,
        text=128,
        noise=1024,
        source=1024,
        experts=experts,
        median_ms=time,
        iqr_ms=0,
        ratio=ratio,
        ratio_iqr=0,
        kontext_ratio=kontext,
        weights_mib=weights,
        peak_mib=1,
    )


def judged(*rows: Drawn) -> list[bool | None]:
    said: Any = {"width": 1024}
    result = Result(
        kind="generation", name="g", set="full", origin=origin(), rounds=5, model=said, drawn=list(rows)
    )
    return [verdict.met for verdict in generation(Found((result,)))]


@pytest.mark.parametrize(
    ("five", "expected"),
    [
        (row(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.05, 1.1), [True, True, True, True]),
        (row(f"{CACHED}, N=5", 5, 1.21, 1.5, 1.05, 1.1), [False, True, True, True]),
        (row(f"{CACHED}, N=5", 5, 1.2, 1.49, 1.05, 1.1), [True, False, True, True]),
        (row(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.06, 1.1), [True, True, False, True]),
        (row(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.05, 1.2), [True, True, True, False]),
    ],
)
def test_drawing_is_judged_by_its_own_numbers(five: Drawn, expected: list[bool]) -> None:
    others = [row(PLAIN_TEXT, 0, 1.0, 1.8), row(KONTEXT, 0, 1.8, 1.0), row(f"{UNCACHED}, N=5", 5, 1.9, 0.9)]
    assert judged(*others, row(f"{CACHED}, N=1", 1, 1.1, 1.6), five) == expected
