"""Writes docs/recipes/costs.md, the cost of FLUX.1-dev: `python -m recipes.cologen.tools.cost_page`.

Every number is computed from the config `flux_dev` by what `doctor` uses, or is an assumption that is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from recipes.cologen.config.run import REPOSITORY, RunConfig, load_config
from recipes.cologen.costs.activations import StepBytes, step_bytes
from recipes.cologen.costs.arithmetic import step_flops
from recipes.cologen.costs.gpus import GPUS
from recipes.cologen.costs.memory import FLOAT32, TIGHT, Memory, is_tight, load_of, memory_of
from recipes.cologen.costs.parameters import Counts, count_parameters
from recipes.cologen.costs.shapes import BaseShape, find_shape

PAGE = REPOSITORY / "docs" / "recipes" / "costs.md"
PEAK_FLOPS, SHARE = 989e12, 0.4
"""An H100's dense bf16 products a second by its data sheet, and the share of them that is assumed here."""
CARDS = ("RTX 4090", "RTX 5090", "L40S", "A100 80GB", "H200")
RANKS = (16, 64, 128)
TRACED = (2, 3)
"""Examples at once that are traced, of which other numbers follow: of one alone, torch copies less."""


class Study(NamedTuple):
    """A config, its base and what was traced of it."""

    config: RunConfig
    shape: BaseShape
    counts: Counts
    traced: dict[tuple[bool, bool], tuple[StepBytes, StepBytes]]
    """Bytes of micro-batches of `TRACED`, by whether blocks are checkpointed and whether the base is in
    nf4, whose layers keep other dtypes; of offloaded encoders, so that it is known what waits encoded."""

    def memory(self, micro_batch: int, checkpointing: bool, **settings: object) -> Memory:
        """Memory of a step; what comes and goes grows by the same with every further example."""
        config = changed(self.config, **settings)
        size = config.data.size or (512, 512)
        load = load_of(config, micro_batch, size, len(config.stages))._replace(checkpointing=checkpointing)
        fewer, more = self.traced[checkpointing, config.base.quantisation == "nf4"]
        least, most = TRACED
        each = [(b - a) / (most - least) for a, b in zip(fewer, more, strict=True)]
        step = StepBytes(*(round(a + (micro_batch - least) * b) for a, b in zip(fewer, each, strict=True)))
        step = step._replace(waiting=step.waiting * load.ahead)
        return memory_of(config, self.counts, load, step)


def changed(config: RunConfig, **settings: object) -> RunConfig:
    """The config with some settings of its base and machine changed; what is not given stays."""
    base = {key: value for key, value in settings.items() if key == "quantisation"}
    machine = {key: value for key, value in settings.items() if key == "encoders"}
    groups = {
        "base": config.base.model_copy(update=base),
        "machine": config.machine.model_copy(update=machine),
    }
    return config.model_copy(update=groups)


def study(name: str) -> Study:
    """Trace a config's step."""
    config = load_config(name)
    shape = find_shape(config.base.path, config.base_path, config.base.max_text_tokens)
    size, traced = config.data.size or (512, 512), {}
    for checkpointing, kind in product((False, True), (None, "nf4")):
        run = changed(config, encoders="offload", quantisation=kind)
        loads = (
            load_of(run, batch, size, len(run.stages))._replace(checkpointing=checkpointing)
            for batch in TRACED
        )
        fewer, more = (step_bytes(shape, run.pool, load) for load in loads)
        traced[checkpointing, kind is not None] = (fewer, more)
    return Study(config, shape, count_parameters(shape, config.pool), traced)


def page(found: Study) -> str:
    """The page's text."""
    parts = (_opening(), _parameters(found), _memory(found), _cards(found), _hours(found), _disk(found))
    return "\n".join(line for part in parts for line in part) + "\n"


def _opening() -> Iterator[str]:
    yield "# What it costs"
    yield ""
    yield "<!-- Written by scripts/cost_page (recipes/cologen/tools/cost_page.py); do not edit by hand. -->"
    yield ""
    yield (
        "CoLoGen on FLUX.1-dev with the config `flux_dev`. **Everything here is computed, not yet measured "
        "on a GPU**: parameters are counted on the real architecture without its weights; activations are "
        "what one training step of the recipe's own code saves and holds, traced on tensors that have "
        "sizes but no data, with the dtypes that CUDA's autocast gives (norms in float32, which the CPU's "
        "leaves in bfloat16) and those of layers in 4 bits. Tests hold the trace against real steps of small "
        "bases with the same dtypes: it is never below by more than 1 %, and up to 18 % above. GB are 10^9 "
        "bytes. For your own config and card, ask the doctor:"
    )
    yield from ("", "```bash")
    yield 'python -m recipes.cologen.doctor --config flux_dev --gpu "RTX 4090"'
    yield from ("```", "")


def _parameters(found: Study) -> Iterator[str]:
    counts, pool = found.counts, found.config.pool
    yield from ("## Parameters", "")
    yield f"Sites: {counts.sites}. An expert is a LoRA pair on keys and one on values at every site."
    yield ""
    yield from _heads("rank", "an expert", "five experts", "on disk, five experts")
    for rank in RANKS:
        one = counts.per_expert * rank // pool.rank
        yield f"| {rank} | {one / 1e6:.2f} M | {5 * one / 1e6:.1f} M | {5 * one * FLOAT32 / 1e9:.2f} GB |"
    yield ""
    routers = len(found.config.stages) * counts.router_per_expert
    yield (
        f"Routers of five experts add {routers / 1e6:.2f} M. Frozen: "
        + ", ".join(f"{name} {count / 1e9:.2f} B" for name, count in counts.base.items())
        + "."
    )
    yield ""


def _memory(found: Study) -> Iterator[str]:
    batch = found.config.machine.micro_batch or 1
    memory = found.memory(batch, found.config.machine.gradient_checkpointing)
    height, width = memory.load.height, memory.load.width
    yield from ("## Memory by part", "")
    yield f"As `flux_dev` is: {batch} examples of {height} x {width} pixels at once, all five experts."
    yield ""
    yield from _heads("part", "GB", "what")
    for part in memory.parts:
        yield f"| {part.name} | {part.bytes / 1e9:.2f} | {part.note} |"
    yield f"| **all** | **{memory.total / 1e9:.2f}** | |"
    yield from ("", "Activations alone, by examples at once:", "")
    both = ("without checkpointing, GB", "with checkpointing, GB")
    yield from _heads("examples at once", *both, *(f"nf4 {name}" for name in both))
    for size in (1, 2, 4, 8, 16):
        held = [
            _activations(found.memory(size, checkpointing, quantisation=kind))
            for kind, checkpointing in product((None, "nf4"), (False, True))
        ]
        yield f"| {size} | " + " | ".join(f"{one / 1e9:.2f}" for one in held) + " |"
    yield ""


def _activations(memory: Memory) -> int:
    return next(part.bytes for part in memory.parts if part.name == "activations")


def _cards(found: Study) -> Iterator[str]:
    yield from ("## Which card", "")
    yield (
        "Examples at once that fit with gradient checkpointing, text encoders and VAE offloaded "
        "(`machine.encoders=offload`), for a frozen base in bf16, in 8 bits and in 4 bits "
        "(`base.quantisation`), a batch of 256 on one card. L: only, or more, with "
        "`machine.encoders=sequential_offload`, where layers of encoders come one by one. *: tight, less "
        f"than {TIGHT:.0%} of the card is left, by an estimate that no GPU has confirmed; take the next "
        "smaller number first. Quantised weights that are unpacked for a product are not counted: one layer "
        "at a time."
    )
    yield ""
    yield from _heads("card", "memory, GB", "bfloat16", "torchao_fp8", "nf4")
    for card in CARDS:
        cells = [fitting(found, GPUS[card] * 10**9, kind) for kind in (None, "torchao_fp8", "nf4")]
        yield f"| {card} | {GPUS[card]} | " + " | ".join(cells) + " |"
    yield ""


def fitting(found: Study, available: int, quantisation: str | None) -> str:
    """The most examples at once that fit, marked where they are tight or need layers to come one by one."""
    most = {way: _most(found, available, quantisation, way) for way in ("offload", "sequential_offload")}
    way = max(most, key=lambda name: most[name])  # the first of two that are alike
    if not most[way]:
        return "none"
    total = found.memory(most[way], True, quantisation=quantisation, encoders=way).total
    return f"{most[way]}{' L' * (way != 'offload')}{'*' * is_tight(total, available)}"


def _most(found: Study, available: int, quantisation: str | None, encoders: str) -> int:
    """Examples at once that fit, in powers of two up to the paper's smallest batch; 0: none."""
    sizes = [2**power for power in range(8)]
    fits = [
        size
        for size in sizes
        if found.memory(size, True, quantisation=quantisation, encoders=encoders).total <= available
    ]
    return max(fits, default=0)


def _hours(found: Study) -> Iterator[str]:
    size = found.config.data.size or (512, 512)
    load = load_of(found.config, 1, size, len(found.config.stages))._replace(checkpointing=True)
    flops = step_flops(found.shape, found.config.pool, load)
    yield from ("## Hours", "")
    yield (
        f"One example takes {flops / 1e12:.0f} TFLOP (forward, backward to the experts, and forward again "
        f"for checkpointing; encoders not counted). At {SHARE:.0%} of an H100's {PEAK_FLOPS / 1e12:.0f} "
        f"TFLOP/s, **an assumption**, that is {flops / (PEAK_FLOPS * SHARE):.2f} s. What your machine does "
        "is measured by `doctor --probe`, in three real steps of every stage."
    )
    yield ""
    yield from _heads("stage", "steps", "batch", "examples", "GPU hours", "days on 8 GPUs")
    total = 0.0
    for name, stage in found.config.stages.items():
        examples = stage.steps * stage.batch_size
        hours = examples * flops / (PEAK_FLOPS * SHARE) / 3600
        total += hours
        yield (
            f"| {name} | {stage.steps:,} | {stage.batch_size} | {examples / 1e6:.1f} M | {hours:,.0f} | "
            f"{hours / 8 / 24:.1f} |"
        )
    yield f"| **all** | | | | **{total:,.0f}** | **{total / 8 / 24:.1f}** |"
    yield ""


def _disk(found: Study) -> Iterator[str]:
    one = (found.counts.per_expert + found.counts.router_per_expert) * FLOAT32
    pools = sum(one * (number + 1) for number in range(len(found.config.stages)))
    yield from ("## Disk", "")
    yield (
        f"A finished stage keeps its whole pool: {pools / 1e9:.2f} GB for five stages; the stage in progress "
        f"up to {7 * one / 1e9:.2f} GB, twice while it is written. The base is about "
        f"{2 * sum(found.counts.base.values()) / 1e9:.0f} GB in bf16. The data sets' sizes are in "
        "[the paper's data](paper_data.md)."
    )


def _heads(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m recipes.cologen.tools.cost_page", description=__doc__)
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (default: docs/recipes/costs.md)")
    parser.parse_args(arguments).output.write_text(page(study("flux_dev")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
