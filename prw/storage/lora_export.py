"""Exports one expert as a plain LoRA for PEFT or diffusers, and measures how far that is from its pool.

The router stays behind: an exported expert acts on every token with weight one. In the pool it does so only
where the router chose it, and with `gate="prob"` only where the router was certain. The card says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from prw.errors import ConfigError, UnsupportedError
from prw.layers import pair_of
from prw.routing import Routing, per_token
from prw.storage.atomic import atomic_folder
from prw.storage.folder import pool_parameters, refuse_other_kind, write_config
from prw.storage.lora_files import DIFFUSERS_WEIGHTS_NAME
from prw.storage.lora_import import scaled
from prw.storage.sharded import one_writer, whole
from prw.tuner import PEFT_PREFIX, Layers, PrwAttention, PrwConfig, PrwLinear, pool_of
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
{item} to {top_k} of them and weights an expert by {gate}. This LoRA acts on every token with weight one."""
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
        exact: Whether the pool gives this expert weight one everywhere, so that the LoRA equals the pool. A
            measurement can say no: a model may let the pool act on some tokens only.
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


def export_lora(
    model: nn.Module,
    layers: Layers,
    adapter: str,
    config: PrwConfig,
    expert: str,
    path: Path,
    layout: Layout,
    inputs: Any = None,
) -> LoraExport:
    """Save one expert as a plain LoRA.

    Args:
        model: The model.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        config: The pool's configuration.
        expert: Name of the expert.
        path: Folder to write.
        layout: `peft`: A and B as they are, and their scale in the configuration. `diffusers`: one file for
            `load_lora_weights` and `load_lora_adapter`, with the scale in B.
        inputs: What to measure the difference on: keyword arguments of the model, its one argument, or a
            function that runs the model. None measures nothing.
    """
    pool = pool_of(layers, adapter)
    index, experts = pool.index(expert), pool.experts[: pool.scope.size]
    if layout not in ("peft", "diffusers"):
        raise ConfigError(f"export_lora writes the layouts 'peft' and 'diffusers', got {layout!r}.")
    report = LoraExport(path, expert, exact=len(experts) == 1)
    if inputs is not None:
        report = measured(report, model, layers, adapter, index, inputs)
    pairs = pairs_of(layers, adapter, index, skip_empty=expert in config.imported)
    component = "unet" if "UNet" in type(model).__name__ else "transformer"
    text = card(report, config, layout, len(pairs), component, experts)
    with one_writer(pool_parameters(layers, adapter).values()) as writes:
        if writes:
            refuse_other_kind(path, "LORA")
            scales = {name: layers[name].scales[adapter] for name in pairs}
            with atomic_folder(path, last=CONFIG_NAME) as draft:
                if layout == "peft":
                    write_config(draft, lora_config(pairs, scales, layers, config))
                    weights, file = lora_weights(pairs, PEFT_PREFIX), SAFETENSORS_WEIGHTS_NAME
                else:
                    weights, file = lora_weights(pairs, f"{component}.", scales), DIFFUSERS_WEIGHTS_NAME
                save_file(weights, draft / file, metadata={"format": "pt"})
                (draft / README).write_text(text, encoding="utf-8")
    return report


def pairs_of(layers: Layers, adapter: str, index: int, skip_empty: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Collect an expert's A and B by projection, on the CPU; `skip_empty` omits those that add nothing."""
    pairs = {path: pair_of(layer, adapter, index, whole) for path, layer in layers.items()}
    adding = {path: pair for path, pair in pairs.items() if bool(pair[1].any())}
    return adding if skip_empty and adding else pairs


def lora_weights(
    pairs: dict[str, tuple[Tensor, Tensor]], prefix: str, scales: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Name the weights as a LoRA's file does; scales, where given, are folded into B."""
    weights = {}
    for path, (down, up) in pairs.items():
        folded = up if scales is None or scales[path] == 1.0 else scaled(up, scales[path]).to(up.dtype)
        weights[f"{prefix}{path}.lora_A.weight"] = down
        weights[f"{prefix}{path}.lora_B.weight"] = folded.contiguous()
    return weights


def lora_config(
    pairs: dict[str, tuple[Tensor, Tensor]], scales: Mapping[str, float], layers: Layers, config: PrwConfig
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
    """Write the README of an exported expert; `experts` are those in use at export."""
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


# ------------------------------------------------------------------------------------------------- measuring


def measured(
    report: LoraExport, model: nn.Module, layers: Layers, adapter: str, index: int, inputs: Any
) -> LoraExport:
    """Compare the pool with the plain LoRA of one of its experts, on some inputs."""
    inside = next((path for path, layer in layers.items() if isinstance(layer, PrwAttention)), None)
    if inside is not None:
        raise UnsupportedError(
            f"{inside} is an nn.MultiheadAttention: its keys and values cannot be observed from outside, so "
            "the difference cannot be measured. Export without measure=."
        )

    def run() -> Any:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return inputs() if callable(inputs) and not isinstance(inputs, Tensor) else model(inputs)

    def replace_by_plain(path: str, layer: PrwLinear, hidden: Tensor, output: Tensor, routed: bool) -> Tensor:
        plain = plain_output(layer, adapter, index, hidden) * layer.strengths[adapter]
        return output + plain.reshape(output.shape).to(output.dtype)

    pool = pool_of(layers, adapter)
    with torch.no_grad(), evaluating(model):
        pooled, routing, differences = run_pool(run, layers, adapter, index)
        as_of: list[float] | None = differences
        if pool.size > index + 1:
            with pool.narrowed(size=index + 1):
                as_of = run_pool(run, layers, adapter, index)[2]
        elif pool.size < index + 1:
            as_of = None  # inside a block of an earlier pool
        with pool.narrowed(disabled=True), observed(layers, replace_by_plain):
            alone = run()
    chosen, gate = share_and_gate(routing, index)
    return report._replace(
        exact=report.exact and max(differences) == 0.0,
        chosen=chosen,
        mean_gate=gate,
        mean_difference=sum(differences) / len(differences),
        max_difference=max(differences),
        output_difference=relative(tensors_of(pooled), tensors_of(alone)),
        difference_as_of=None if as_of is None else sum(as_of) / len(as_of),
    )


def run_pool(
    run: Callable[[], Any], layers: Layers, adapter: str, index: int
) -> tuple[Any, Routing, list[float]]:
    """Run the model with its pool.

    Returns:
        The output, the decisions, and by projection the relative distance of gated from plain output.
    """
    sums: dict[str, Tensor] = {}

    def add(path: str, layer: PrwLinear, hidden: Tensor, output: Tensor, routed: bool) -> None:
        size = plain_output(layer, adapter, index, hidden).double().square().sum(-1)  # [tokens]
        gate = gate_of(routing, layer, adapter, index, hidden) if routed else 0.0
        # The sum over tokens of |(1 - gate) * plain|^2, and of |plain|^2.
        sums[path] = sums.get(path, 0.0) + torch.stack([((1.0 - gate) ** 2 * size).sum(), size.sum()])

    with pool_of(layers, adapter).recording() as routing, observed(layers, add):
        output = run()
    pairs = [one.tolist() for one in sums.values()]
    return output, routing, [(left / whole) ** 0.5 for left, whole in pairs if whole > 0.0] or [0.0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside a `with` block: no noise, no dropout."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def observed(
    layers: Layers, observe: Callable[[str, PrwLinear, Tensor, Tensor, bool], Any]
) -> Iterator[None]:
    """Call a function after every forward of the projections inside a `with` block.

    Args:
        layers: The projections, by path.
        observe: Takes path, projection, input, output, and whether experts were to act; a result that is not
            None replaces the output.
    """
    with ExitStack() as stack:
        for path, layer in layers.items():

            def after(layer: Any, args: Any, kwargs: Any, output: Tensor, path: str = path) -> Any:
                hidden = args[0] if args else kwargs["hidden"]
                return observe(path, layer, hidden, output, bool(kwargs.get("routed", True)))

            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        yield


def plain_output(layer: PrwLinear, adapter: str, index: int, hidden: Tensor) -> Tensor:
    """Compute what the expert adds to every token with weight one, of shape [tokens, d_out]."""
    down, up = pair_of(layer, adapter, index)
    tokens = hidden.reshape(-1, hidden.shape[-1]).to(down.dtype)  # [..., d_in] -> [tokens, d_in]
    return tokens @ down.T @ up.T * layer.scales[adapter]


def gate_of(routing: Routing, layer: PrwLinear, adapter: str, index: int, hidden: Tensor) -> Tensor | float:
    """Give the gate that the expert has just had for each token, of shape [tokens]."""
    decisions = routing.decisions.get(layer.sites[adapter].name)
    if not decisions:
        return 0.0  # the pool is switched off
    gates = decisions[-1].weights.reshape(decisions[-1].choices.shape)  # [batch, items, k]
    mine = torch.where(decisions[-1].choices == index, gates, torch.zeros_like(gates)).sum(-1)
    groups = layer.sites[adapter].groups(hidden)
    tokens = hidden.shape[:-1].numel()
    return (per_token(mine, tokens) if groups is None else mine.flatten()[groups.index]).double()


def share_and_gate(routing: Routing, index: int) -> tuple[float, float]:
    """Give the fraction of items that went to the expert, and its mean gate there."""
    hits, items, gates = 0, 0, 0.0
    for decision in (each for of_site in routing.decisions.values() for each in of_site):
        mine = decision.choices == index
        hits += int(mine.sum())
        items += int(decision.routed.sum())
        gates += float(decision.weights.reshape(mine.shape)[mine].double().sum())
    return hits / max(items, 1), gates / max(hits, 1)


def tensors_of(output: Any) -> list[Tensor]:
    """List the floating-point tensors of a model's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output
    found = [tensors_of(part) for part in parts] if isinstance(output, Mapping | tuple | list) else []
    return [tensor for tensors in found for tensor in tensors]


def relative(values: list[Tensor], wanted: list[Tensor]) -> float | None:
    """Give the norm of the difference over the norm of what is wanted; None without any tensors."""
    if not wanted:
        return None
    pairs = zip(values, wanted, strict=True)
    left = sum(float((value.double() - want.double()).square().sum()) for value, want in pairs)
    whole = sum(float(want.double().square().sum()) for want in wanted)
    return float((left / whole) ** 0.5) if whole > 0.0 else 0.0
