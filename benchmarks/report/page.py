"""The page docs/benchmarks.md, written from the results alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.groups import PLAIN
from benchmarks.report import gpu, tables
from benchmarks.report.found import Found
from benchmarks.report.verdicts import PASSES, verdicts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"

HEAD = """\
<!-- Written by scripts/benchmark_report from benchmarks/results/cpu/; do not edit. -->
# Benchmarks

What routed experts on K and V cost, measured on a CPU in float32, beside the two plain projections and
beside every peer. All cases of a group run in turn in one process; times are medians, and ratios are
medians of the ratios of each round. The contract, what each baseline is and what trains in it, and how to
measure again: `benchmarks/README.md`.

"""

TARGETS = """
## What was to be shown

Computed from the files in `benchmarks/results/cpu/`. A target holds only if it holds at every measured
point with T ≥ 1024; the worst point is named. Beside a peer, what the ratio would be if prw stood at its
floor is given too: a target above that cannot be reached on this machine.

"""

GRID = """
## The grid

Ratio to the two plain projections; in brackets floor / time, where 1 is what multiplications alone allow:
`1 + 2 r k / d` forward, `1 + (2 + p) r k / d` forward and backward, with k = 1 choice and p the share of
the newest expert, counted. Only the newest expert and its router vectors train. The first column of times
is the two plain projections'.

![Ratio against the number of experts](assets/benchmarks-experts.png)

![Ratio against the rank](assets/benchmarks-rank.png)

![Floor over time](assets/benchmarks-floor.png)
"""

PEERS = """
## Beside every peer

Eight experts, routed by token. Numbers in bold are losses: there the peer is faster. *Added cost* leaves
out what the two plain projections take: (ratio − 1) over prw's (ratio − 1).

![Every peer](assets/benchmarks-peers.png)
"""

KERNELS = """
## Kernels by name

Ratios to the two plain projections; the fastest of a row is bold. This is what the thresholds of
`kernel="auto"` are judged by.
"""

SKEW = """
## Uneven routing

"""

MEMORY = """
## Activation memory

One forward and backward. *Kept* is what autograd holds for the backward, parameters not; *peak* the most
allocated at once above the resting level, outputs and gradients included.

![Activation memory](assets/benchmarks-memory.png)

"""

FLUX = """
## A whole FLUX

diffusers' FLUX with FLUX.1's proportions and fewer blocks (one double, two single), 1024 picture and 512
text tokens (576 and 288 at d = 3072); experts and PEFT's LoRA sit on the same projections. A training
step is forward, loss, backward and AdamW; prw's also records its routing and adds the veteran loss.
Ratios to PEFT LoRA above 1 are bold: there prw is slower.

![FLUX](assets/benchmarks-flux.png)

"""


GENERATION = """
## Drawing a picture from a source

28 steps with one source of as many tokens as the picture, by a FLUX with FLUX.1's proportions (one double,
two single blocks), to latents. Text alone is diffusers' `FluxPipeline` without a source and without experts;
`FluxKontextPipeline` puts the source's tokens beside the noise in every step. With `source_timestep: zero`
CoLoGen runs the source once and keeps its keys and values (*cached*); with `same` it cannot. The peak is
above the weights; weights include the experts'.

![Drawing a picture](assets/benchmarks-generation.png)

"""


def summary(found: Found) -> str:
    """Say in a sentence how many targets were met, and which were not."""
    judged = [verdict for verdict in verdicts(found) if verdict.met is not None]
    missed = [verdict.target for verdict in judged if not verdict.met]
    said = f"{len(judged) - len(missed)} of {len(judged)} targets were met."
    return f"**{said}**" + (f" Not met: {'; '.join(missed)}." if missed else "")


def plain_share(found: Found) -> str:
    """Say how much of Arrow's peak the plain projections have already: more than a third cannot be beaten."""
    plain = {(row.where.tokens, row.where.width): row.peak_mib for row in found.kept() if row.case == PLAIN}
    shares = [
        plain[row.where.tokens, row.where.width] / row.peak_mib
        for row in found.kept()
        if row.case == "PEFT Arrow" and row.where.experts == 4
    ]
    if not shares:
        return ""
    span = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
    return f"\n\nThe two plain projections alone have {span} of the peak of Arrow with N = 4.\n"


def provisional(found: Found) -> str:
    """Say so where the results are not the whole grid on unchanged code."""
    if all(result.set == "full" and not result.origin.changed for result in found.results):
        return ""
    return "These results are **provisional**: not all of them are of the full set and of unchanged code.\n\n"


def page(found: Found) -> str:
    """Write the page."""
    parts = [HEAD, provisional(found), tables.origins(found), "\n", TARGETS]
    parts += [summary(found), "\n\n", tables.verdict_table(found), "\n", GRID]
    for passes, words in PASSES:
        for granularity in ("token", "sample"):
            title = f"\n### {words.capitalize()}, by {granularity}\n\n"
            parts += [title, tables.grid_table(found, passes, granularity), "\n"]
    for head, write in ((PEERS, tables.peers_table), (KERNELS, tables.kernels_table)):
        parts.append(head)
        for passes, words in PASSES:
            parts += [f"\n{words.capitalize()}:\n\n", write(found, passes), "\n"]
    for head, body in (
        (SKEW, tables.skew_table(found)),
        (MEMORY, tables.memory_table(found) + plain_share(found)),
        (FLUX, tables.flux_table(found)),
        (GENERATION, tables.generation_table(found)),
        (gpu.HEAD, gpu.body(gpu.committed())),
    ):
        parts += [head, body, "\n"]
    return "".join(parts)
