"""What generates whole pictures stands on equal footing."""

from itertools import pairwise

import torch
from diffusers import FluxKontextPipeline, FluxPipeline

from benchmarks.flux import Geometry, base_weights, plain, with_pool
from benchmarks.generation import by_cologen, by_diffusers, generators, inputs

GEOMETRY = Geometry(heads=2, head=32, double=1, single=1, side=3, text=5, rank=4)


def test_experts_that_do_nothing_and_no_source_leave_what_flux_pipeline_generates() -> None:
    weights, given = base_weights(GEOMETRY), inputs(GEOMETRY)
    model = plain(GEOMETRY, weights).eval()
    expected = by_diffusers(FluxPipeline, model, given)(2)
    found = by_cologen(plain(GEOMETRY, weights).eval(), given._replace(picture=None), "zero")(2)
    assert torch.equal(found, expected)


def test_every_way_generates_another_picture_of_the_same_size() -> None:
    found = {name: one.generate(2) for name, one in generators(GEOMETRY).items()}
    assert {picture.shape for picture in found.values()} == {(1, 9, 64)}
    assert not any(torch.equal(one, other) for one, other in pairwise(found.values()))
    assert all(picture.isfinite().all() for picture in found.values())


def test_kontext_and_cologen_read_the_source() -> None:
    weights, given = base_weights(GEOMETRY), inputs(GEOMETRY)
    for source, picture in ((given.source, given.picture), (-given.source, 1 - given.picture)):
        other = given._replace(picture=picture)
        side = 8 * given.noise.shape[-1]
        kontext = by_diffusers(
            FluxKontextPipeline, plain(GEOMETRY, weights).eval(), given, image=source, max_area=side**2
        )(2)
        cached = by_cologen(with_pool(GEOMETRY, weights, 1)[0].eval(), other, "zero")(2)
        if source is given.source:
            before = kontext, cached
    assert not torch.equal(before[0], kontext)
    assert not torch.equal(before[1], cached)
