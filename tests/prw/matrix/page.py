"""Writes the page of supported models; `python -m tests.prw.matrix` runs all checks first."""

from __future__ import annotations

import warnings
from pathlib import Path

from prw.tuner import PrwLinear
from prw.tuner.mha import PrwAttention
from tests.prw.matrix.checks import checks_of, inject, layers
from tests.prw.matrix.family import Family
from tests.prw.matrix.registry import FAMILIES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "supported-models.md"
HEAD = """# Supported models

`prw.inject(model, target="kv")` finds keys and values by structure: by the names and widths of an attention
block's projections, its head counts and, where one projection makes several things, by how the block's code
splits it. No list of classes is looked up, so a model that is not in this table most likely works too; one
whose structure does not tell gets an error that shows the call that would work (`target=[...]`,
`layout=...`).

Written by `scripts/supported_models`, which builds a tiny random model of each class, runs the checks and
writes this page; a test compares the page with the models. Do not edit it.

| model | class | sites | where the experts are | checked |
|---|---|---|---|---|
"""
TAIL = """
## What was checked

* **identity**: the output after injection is bit-equal to that of the frozen base, also with a fresh expert
  and inside `disabled()`; experts that have learnt something do change it.
* **one step**: a step of AdamW with weight decay moves every weight of the newest expert and its router
  vectors, and no bit of anything else.
* **save, load**: a pool loaded into a fresh model gives bit-equal outputs.
* **eject**: every module is the very one that was there, and outputs are bit-equal.
* **batch mates**: a sample's output does not depend on the other one's.
* **causality**, **cached generation**: a later token changes nothing before it; token by token with the cache
  gives what the full forward gives.
* **query rows**: in a projection that makes queries too, their rows keep their bits.
* **true layout**: with the rows of values set to zero, scrambling queries and keys changes nothing; with
  those of keys set to zero, scrambling queries changes nothing. So the rows are what they are said to be.

## What is left out

* Of a joint attention all streams but the main one, the picture's: `add_k_proj`/`add_v_proj` of the text in
  FLUX.1 and Stable Diffusion 3, `to_k_t`/`to_v_t` in HiDream, `to_k_ip` of an IP-adapter. `target="all-kv"`
  takes them too, as sites of their own; or name those that are meant.
* The first projection of latent attention (`kv_a_proj_with_mqa`): what it makes is cached, and experts sit on
  the second one, which makes the keys and values of every head from the cache. Named, it is a site of its
  own.
* Deformable attention, which has values but no keys; projections that are convolutions; keys and values that
  are bare parameters. Named modules must be linear layers or `nn.MultiheadAttention`.
* An `nn.MultiheadAttention` whose `kdim` and `vdim` differ, or that another adapter is around: an error.
* diffusers' `fuse_qkv_projections()` while a pool is attached: an error, since the fused layer would go on
  without the experts. Fuse first, then inject.

Linear attention (gated delta nets and the like) is not left out: its keys and values are found too.

## Rounding and `nn.TransformerEncoder`

Injection freezes the base. Where an input is strided, torch chooses some products by whether the weight
requires a gradient, and on some CPUs the two round differently (1e-7 in float32), with or without prw. So
compare with the base after `model.requires_grad_(False)`.

Torch's fused inference calls would bypass the experts of `nn.MultiheadAttention` and `nn.TransformerEncoder`.
They are used only while no expert is in use. With the first expert torch's plain calls are used instead, so
outputs equal the base's up to rounding rather than bit for bit.
"""


def row(family: Family) -> str:
    """Say of a family its class, the number of its sites, where its experts are, and what it is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = family.made()
    kind, weave = type(model).__name__, inject(model, family, "a")
    asked = checks_of(family, model)
    places = "; ".join(dict.fromkeys(place(path, layer) for path, layer in layers(model).items()))
    where = f"{len(weave.sites)} | {places}"
    return f"| {family.name} | {family.library} `{kind}` | {where} | {', '.join(asked)} |\n"


def place(path: str, layer: PrwLinear) -> str:
    """Say where a layer has experts: the projection, and how its rows are grouped if it is fused."""
    if isinstance(layer, PrwAttention):
        return "`nn.MultiheadAttention`"
    rows, name = next(iter(layer.slices_of("default").values())), path.rpartition(".")[2]
    if rows is None:
        return f"`{name}`"
    return f"`{name}`, {'blocks' if rows.groups == 1 else f'{rows.groups} groups of rows'}"


def page() -> str:
    """Write the whole page."""
    return HEAD + "".join(row(family) for family in FAMILIES) + TAIL
