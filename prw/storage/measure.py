"""How far an expert under its router differs from the plain LoRA that it is exported as, on given inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prw.errors import UnsupportedError
from prw.layers import pair_of
from prw.routing import Routing, per_token
from prw.tuner import Layers, PrwAttention, PrwLinear, pool_of


class Measured(NamedTuple):
    """How one expert acted on some inputs; see `LoraExport`."""

    chosen: float
    mean_gate: float
    mean_difference: float
    max_difference: float
    output_difference: float | None
    difference_as_of: float | None


def measure_expert(model: nn.Module, layers: Layers, adapter: str, index: int, inputs: Any) -> Measured:
    """Compare the pool with the plain LoRA of one of its experts.

    Args:
        model: The model.
        layers: The projections of the pool, by path.
        adapter: Adapter name.
        index: Position of the expert.
        inputs: Keyword arguments of the model, its one argument, or a function that runs the model.
    """
    refuse_attention(layers)
    run = runner(model, inputs)
    pool = pool_of(layers, adapter)

    def replace(path: str, layer: PrwLinear, hidden: Tensor, output: Tensor, routed: bool) -> Tensor:
        plain = plain_output(layer, adapter, index, hidden) * layer.strengths[adapter]
        return output + plain.reshape(output.shape).to(output.dtype)

    with torch.no_grad(), evaluating(model):
        pooled, routing, differences = run_pool(run, layers, adapter, index)
        as_of: list[float] | None = differences
        if pool.size > index + 1:
            with pool.narrowed(size=index + 1):
                as_of = run_pool(run, layers, adapter, index)[2]
        elif pool.size < index + 1:
            as_of = None  # inside a block of an earlier pool, or of none
        with pool.narrowed(disabled=True), watched(layers, replace):
            alone = run()
    return Measured(
        *gate_of(routing, index),
        sum(differences) / len(differences),
        max(differences),
        relative(tensors_of(pooled), tensors_of(alone)),
        None if as_of is None else sum(as_of) / len(as_of),
    )


def run_pool(
    run: Callable[[], Any], layers: Layers, adapter: str, index: int
) -> tuple[Any, Routing, list[float]]:
    """Run the model with its pool as it is.

    Returns:
        The output, the decisions, and by projection how far the expert's gated output is from its plain one.
    """
    parts: dict[str, list[float]] = {}

    def look(path: str, layer: PrwLinear, hidden: Tensor, output: Tensor, routed: bool) -> None:
        plain = plain_output(layer, adapter, index, hidden)
        weight = weight_here(routing, layer, adapter, index, hidden) if routed else 0.0
        size = plain.double().square().sum(-1)
        sums = parts.setdefault(path, [0.0, 0.0])
        sums[0] += float(((1.0 - weight) ** 2 * size).sum())
        sums[1] += float(size.sum())

    with pool_of(layers, adapter).recording() as routing, watched(layers, look):
        output = run()
    differences = [(left / whole) ** 0.5 for left, whole in parts.values() if whole > 0.0] or [0.0]
    return output, routing, differences


def refuse_attention(layers: Layers) -> None:
    """Refuse to measure where keys and values never leave the attention.

    Raises:
        UnsupportedError: names the attention.
    """
    inside = [path for path, layer in layers.items() if isinstance(layer, PrwAttention)]
    if inside:
        raise UnsupportedError(
            f"{inside[0]} is an nn.MultiheadAttention: its keys and values cannot be watched from outside, "
            "so the difference cannot be measured. Export without measure=."
        )


def runner(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """Make a function that runs the model on the inputs."""
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    if callable(inputs) and not isinstance(inputs, Tensor):
        return inputs  # type: ignore[no-any-return]
    return lambda: model(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model evaluate inside a `with` block: no noise, no dropout."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def watched(layers: Layers, watch: Callable[[str, PrwLinear, Tensor, Tensor, bool], Any]) -> Iterator[None]:
    """Call a function after every forward of the projections inside a `with` block.

    Args:
        layers: The projections, by path.
        watch: Gets path, projection, input, output, and whether experts were to act; what it returns, unless
            None, replaces the output.
    """

    def hook(path: str) -> Callable[..., Any]:
        def after(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
            hidden = args[0] if args else kwargs["hidden"]
            return watch(path, layer, hidden, output, bool(kwargs.get("routed", True)))

        return after

    handles = [layer.register_forward_hook(hook(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_output(layer: PrwLinear, adapter: str, index: int, hidden: Tensor) -> Tensor:
    """Compute what the expert adds to every token with weight one, of shape [tokens, d_out]."""
    down, up = pair_of(layer, adapter, index)
    rows = hidden.reshape(-1, hidden.shape[-1]).to(down.dtype)
    return rows @ down.T @ up.T * layer.scales[adapter]


def weight_here(
    routing: Routing, layer: PrwLinear, adapter: str, index: int, hidden: Tensor
) -> Tensor | float:
    """Give the weight that the expert has just had for each token, of shape [tokens]."""
    decisions = routing.decisions.get(layer.sites[adapter].name)
    if not decisions:
        return 0.0  # the pool is switched off
    weights = decisions[-1].weights.reshape(decisions[-1].choices.shape)
    mine = torch.where(decisions[-1].choices == index, weights, torch.zeros_like(weights)).sum(-1)
    groups = layer.sites[adapter].groups(hidden)
    rows = hidden.shape[:-1].numel()
    return (per_token(mine, rows) if groups is None else mine.flatten()[groups.index]).double()


def gate_of(routing: Routing, index: int) -> tuple[float, float]:
    """Give the fraction of items that went to the expert, and its mean weight there."""
    hits, items, weight = 0, 0, 0.0
    for decision in (each for of_site in routing.decisions.values() for each in of_site):
        mine = decision.choices == index
        hits += int(mine.sum())
        items += int(decision.routed.sum())
        weight += float(decision.weights.reshape(mine.shape)[mine].double().sum())
    return hits / max(items, 1), weight / max(hits, 1)


def tensors_of(output: Any) -> list[Tensor]:
    """List the floating-point tensors of a model's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output
    return (
        [found for part in parts for found in tensors_of(part)]
        if isinstance(output, Mapping | tuple | list)
        else []
    )


def relative(values: list[Tensor], wanted: list[Tensor]) -> float | None:
    """Give the norm of the difference over the norm of what is wanted; None without any tensors."""
    if not wanted:
        return None
    pairs = list(zip(values, wanted, strict=True))
    left = sum(float((value.double() - want.double()).square().sum()) for value, want in pairs)
    whole = sum(float(want.double().square().sum()) for want in wanted)
    return float((left / whole) ** 0.5) if whole > 0.0 else 0.0
