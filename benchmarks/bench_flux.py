"""What a pool costs in a whole step of FLUX, beside the plain model and PEFT's LoRA on the same modules."""

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import prw
from benchmarks.flux_steps import (
    Geometry,
    base_weights,
    denoising_step,
    inputs,
    plain,
    training_step,
    with_lora,
    with_pool,
)
from benchmarks.group_run import SKIPPED, done
from benchmarks.groups import LORA, SetName
from benchmarks.measuring import Case, interleaved, paired, rounds_for, routed_of, spread, tidy
from benchmarks.origin import origin
from benchmarks.schema import Result, Step, write

PLAIN_FLUX = "plain FLUX"
WIDE = Geometry(heads=24, side=24, text=288)
"""FLUX.1's own width, with fewer tokens, so that a step takes seconds."""
GEOMETRIES: dict[SetName, tuple[Geometry, ...]] = {
    "smoke": (Geometry(heads=2, head=32, double=1, single=1, side=4, text=5, rank=4),),
    "default": (Geometry(),),
    "full": (Geometry(), Geometry(rank=64), *(replace(WIDE, rank=rank) for rank in (16, 128))),
}
BUDGET_S: dict[SetName, float] = {"smoke": 0, "default": 20, "full": 60}
Model = tuple[nn.Module, prw.Weave | None, int]


def models(geometry: Geometry) -> dict[str, Model]:
    """Build the cases, on shared weights: model, handle, number of experts."""
    weights = base_weights(geometry)
    found: dict[str, Model] = {
        PLAIN_FLUX: (plain(geometry, weights), None, 0),
        LORA: (with_lora(geometry, weights), None, 1),
    }
    for experts in (1, 5, 8):
        found[f"prw, N={experts}"] = (*with_pool(geometry, weights, experts), experts)
    return found


def rows(
    what: Any, built: dict[str, Model], seconds: dict[str, list[float]], batch: dict[str, Tensor]
) -> list[Step]:
    """Turn seconds into rows, each beside the plain model and beside LoRA."""
    found = []
    for name, values in seconds.items():
        model, weave, experts = built[name]
        of_time, of_ratio = spread(values), paired(values, seconds[PLAIN_FLUX])
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        found.append(
            Step(
                case=name,
                what=what,
                experts=experts,
                trainable=trained,
                median_ms=tidy(1e3 * of_time.median),
                iqr_ms=tidy(1e3 * of_time.iqr),
                ratio=of_ratio.median,
                ratio_iqr=of_ratio.iqr,
                ratio_to_lora=paired(values, seconds[LORA]).median,
                routed=routed_of(weave, partial(model, **batch)),
            )
        )
    return found


@pytest.mark.parametrize("what", ["denoising step", "training step"])
def bench_flux(benchmark: Any, what: str, geometry: Geometry, results: Path, chosen: SetName) -> None:
    name = f"flux-d{geometry.width}-r{geometry.rank}-{what.split()[0]}"
    if not benchmark.disabled and done(results, name, chosen):
        pytest.skip(SKIPPED)
    built, batch = models(geometry), inputs(geometry)
    cases: dict[str, Case] = {
        key: denoising_step(model, batch) if what == "denoising step" else training_step(model, weave, batch)
        for key, (model, weave, _) in built.items()
    }
    rounds = 1 if benchmark.disabled else rounds_for(cases, BUDGET_S[chosen])
    gc.collect()
    seconds = interleaved(benchmark, cases, rounds)
    if seconds:
        result = Result(
            kind="flux",
            name=name,
            set=chosen,
            origin=origin(),
            rounds=rounds,
            model=geometry.said(),
            steps=rows(what, built, seconds, batch),
        )
        write(result, results)
