"""One expert as a plain LoRA for stock PEFT or diffusers, with a card that says what it is and is not.

The router stays behind: an exported expert acts on every token with weight one, which is what it did where
the router was sure of it (probability gate) or always (unit gate).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from prw.errors import ConfigError
from prw.layers import pair_of
from prw.storage.atomic import atomic_folder
from prw.storage.folder import refuse_other_kind, write_config
from prw.storage.lora_files import DIFFUSERS_WEIGHTS_NAME
from prw.storage.lora_import import scaled
from prw.storage.measure import Measured
from prw.storage.sharded import one_writer, whole
from prw.storage.state import pool_parameters
from prw.tuner import PEFT_PREFIX, Layers, PrwConfig, pool_of
from prw.tuner.card import README

Layout = Literal["peft", "diffusers"]

CARD = """---
library_name: {library}
tags:
- lora
- prw
base_model: {base}
---

# Expert {expert} of a PRW pool, as a plain LoRA

A LoRA on {count} key and value projections, for use without prw: {how}.

{difference}
"""
EXACT = (
    """In its pool this expert has weight one for every token, whatever the input: this LoRA does the same."""
)
PARTLY = """In its pool this expert has weight one wherever the model lets the pool act. **That was not every
token of the measured inputs**, and this LoRA acts on every one."""
GATED = """**It is not what the pool does.** The pool has {size} experts ({experts}); its router sends each
{item} to {top_k} of them and weighs an expert by {gate}. This LoRA acts on every token with weight one."""
MEASURED = """
Measured on the inputs given at export:

| | |
|---|---|
| {item}s that the router sent to this expert | {chosen:.1%} |
| its mean weight there | {mean_gate:.3f} |
| difference from the expert in the pool, mean over projections | {mean_difference:.3f} |
| the same, largest | {max_difference:.3f} |
| the same, mean, from the pool as of this expert's stage | {as_of} |
| difference of the model's output from the whole pool's | {output} |

Differences are relative norms: 0 is equal, 1 is as large as the LoRA's own part."""
FIRST = """ As of its own stage (`weave.as_of({expert!r})`) the pool was this expert alone, with weight one
for every token: then this LoRA does the same."""
UNMEASURED = (
    "\nHow far that is from the pool was not measured; `weave.export_lora(name, path, measure=inputs)` does."
)


class LoraExport(NamedTuple):
    """What was exported, and how far it is from the expert in its pool. Unmeasured numbers are None.

    Attributes:
        path: The folder.
        expert: Name of the expert.
        exact: Whether the pool gives this expert weight one everywhere, so that the LoRA is the pool. What
            was measured counts: a model may let the pool act on some tokens only.
        chosen: Fraction of items that the router sent to it.
        mean_gate: Its mean weight there.
        mean_difference: Relative norm of the difference between the expert's gated and its plain output at a
            projection, over all tokens: 0 is equal, 1 is never chosen. Mean over projections.
        max_difference: The same, at the projection where it is largest.
        output_difference: Relative norm of the difference between the model's outputs with the pool and with
            the plain LoRA; None too if the run gave no tensors.
        difference_as_of: `mean_difference`, from the pool as it was when this expert's stage ended; 0 for a
            first expert. None too inside a block of an earlier pool.
    """

    path: Path
    expert: str
    exact: bool
    chosen: float | None = None
    mean_gate: float | None = None
    mean_difference: float | None = None
    max_difference: float | None = None
    output_difference: float | None = None
    difference_as_of: float | None = None


def write_lora(
    path: Path,
    layers: Layers,
    adapter: str,
    expert: str,
    config: PrwConfig,
    layout: Layout = "peft",
    component: str = "transformer",
    measured: Measured | None = None,
) -> LoraExport:
    """Save one expert as a plain LoRA.

    Args:
        path: Folder to write.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        expert: Name of the expert.
        config: The pool's configuration.
        layout: `peft`: A and B as they are, and their scale in the configuration. `diffusers`: one file for
            `load_lora_weights` and `load_lora_adapter`, with the scale in B.
        component: What diffusers calls the model in a pipeline.
        measured: What was measured, for the card.

    Raises:
        PoolError: if the pool has no such expert.
        ConfigError: if there is no such layout.
    """
    pool = pool_of(layers, adapter)
    index = pool.index(expert)
    if layout not in ("peft", "diffusers"):
        raise ConfigError(f"export_lora writes the layouts 'peft' and 'diffusers', got {layout!r}.")
    pairs = pairs_of(layers, adapter, index, skip_empty=expert in config.imported)
    experts = pool.experts[: pool.scope.size]
    exact = len(experts) == 1 and (measured is None or measured.max_difference == 0.0)
    report = LoraExport(path, expert, exact, *(measured or ()))
    scales = {name: layers[name].scales[adapter] for name in pairs}
    with one_writer(pool_parameters(layers, adapter).values()) as writes:
        if writes:
            lora = lora_config(pairs, scales, config, layers)
            write_lora_folder(pairs, scales, report, config, layout, component, lora, experts)
    return report


def write_lora_folder(
    pairs: dict[str, tuple[Tensor, Tensor]],
    scales: dict[str, float],
    report: LoraExport,
    config: PrwConfig,
    layout: Layout,
    component: str,
    lora: LoraConfig,
    experts: tuple[str, ...],
) -> None:
    """Write a LoRA's folder; it appears whole or not at all."""
    refuse_other_kind(report.path, "LORA")
    with atomic_folder(report.path) as draft:
        if layout == "peft":
            write_config(draft, lora)
            file, prefix, factors = SAFETENSORS_WEIGHTS_NAME, PEFT_PREFIX, dict.fromkeys(pairs, 1.0)
        else:
            file, prefix, factors = DIFFUSERS_WEIGHTS_NAME, f"{component}.", scales
        save_file(tensors_for(pairs, prefix, factors), draft / file, metadata={"format": "pt"})
        text = card(report, config, layout, len(pairs), component, experts)
        (draft / README).write_text(text, encoding="utf-8")


def pairs_of(layers: Layers, adapter: str, index: int, skip_empty: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Collect an expert's A and B by projection, perhaps without those that add nothing."""
    pairs = {path: pair_of(layer, adapter, index, whole) for path, layer in layers.items()}
    adding = {path: pair for path, pair in pairs.items() if bool(pair[1].any())}
    return adding if skip_empty and adding else pairs


def tensors_for(
    pairs: dict[str, tuple[Tensor, Tensor]], prefix: str, factors: dict[str, float]
) -> dict[str, Tensor]:
    """Name the weights as a LoRA file does, with a factor on every B."""
    weights = {}
    for path, (down, up) in pairs.items():
        weights[f"{prefix}{path}.lora_A.weight"] = down
        folded = up if factors[path] == 1.0 else scaled(up, factors[path]).to(up.dtype)
        weights[f"{prefix}{path}.lora_B.weight"] = folded.contiguous()
    return weights


def lora_config(
    pairs: dict[str, tuple[Tensor, Tensor]], scales: dict[str, float], config: PrwConfig, layers: Layers
) -> LoraConfig:
    """Write PEFT's configuration of the LoRA: the usual rank and alpha, and patterns for the others."""
    ranks = {path: down.shape[0] for path, (down, _) in pairs.items()}
    alphas = {path: scales[path] * rank for path, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes a float as well
        rank_pattern={f"^{re.escape(path)}": own for path, own in ranks.items() if own != rank},
        alpha_pattern={f"^{re.escape(path)}": own for path, own in alphas.items() if own != alpha},
        target_modules=sorted(pairs),
        fan_in_fan_out=all(type(layer.get_base_layer()).__name__ == "Conv1D" for layer in layers.values()),
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def card(
    report: LoraExport,
    config: PrwConfig,
    layout: Layout,
    count: int,
    component: str,
    experts: tuple[str, ...],
) -> str:
    """Write the README of an exported expert, as one of the experts that are in use at export."""
    settings = config.settings()
    values = {
        **report._asdict(),
        "item": settings.granularity,
        "as_of": "none" if report.difference_as_of is None else f"{report.difference_as_of:.3f}",
        "output": "none" if report.output_difference is None else f"{report.output_difference:.3f}",
    }
    if report.exact:
        difference = EXACT
    elif len(experts) == 1:
        difference = PARTLY
    else:
        difference = GATED.format(
            size=len(experts),
            experts=", ".join(experts),
            top_k=min(settings.top_k, len(experts)),
            gate="its probability among all" if settings.gate == "prob" else "one",
            item=settings.granularity,
        )
        difference += FIRST.format(expert=report.expert) if report.expert == experts[0] else ""
    numbers = UNMEASURED if report.mean_gate is None else MEASURED.format(**values)
    return CARD.format(
        library="peft" if layout == "peft" else "diffusers",
        base=config.base_model_name_or_path or "unknown",
        expert=report.expert,
        count=count,
        how="`PeftModel.from_pretrained(model, folder)`"
        if layout == "peft"
        else "`pipe.load_lora_weights(folder)`, or "
        f'`model.load_lora_adapter(folder, prefix="{component}", use_safetensors=True)`',
        difference=difference + (numbers if report.mean_gate is not None or not report.exact else ""),
    )
