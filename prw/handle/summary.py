"""The summary of a pool in words and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from prw.layers import SiteRecord
from prw.tuner import PrwConfig


def describe(
    model: str,
    config: PrwConfig,
    sites: Sequence[SiteRecord],
    parameters: Sequence[nn.Parameter],
    kernel: str,
) -> str:
    """Describe a pool.

    Args:
        model: Name of the model's class.
        config: The pool's configuration.
        sites: Its sites.
        parameters: Its parameters.
        kernel: How its experts are computed, and why so.
    """
    settings = config.settings()
    training = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    notes = ["newest frozen too"] if config.newest_frozen and config.experts else []
    chosen = f", top {settings.top_k}" if settings.top_k > 1 else ""
    lines = [
        f"{len(config.experts)} experts at {len(sites)} sites of {model}",
        *site_lines(sites),
        f"experts: {', '.join(experts(config)) or 'none yet'}{''.join(f' ({note})' for note in notes)}",
        f"rank {settings.rank}, scale {settings.scale:g}, {settings.gate} gate{chosen}, "
        f"{settings.granularity}s",
        f"kernel: {kernel}",
        f"parameters: {count(parameters):,} in the pool, {count(training):,} train, {count(frozen):,} frozen",
        f"bytes: {size(parameters)}; training {size(training)}; frozen {size(frozen)}",
    ]
    return "\n".join(lines)


def experts(config: PrwConfig) -> list[str]:
    """Name the experts, with what is special of each."""
    return [f"{name} (imported)" if name in config.imported else name for name in config.experts]


def site_lines(sites: Sequence[SiteRecord]) -> list[str]:
    """Count the sites by shape: block, projections, widths."""
    shapes = Counter(
        (
            tuple(path.rpartition(".")[2] for path in site.modules),
            site.in_features,
            site.out_features,
        )
        for site in sites
    )
    return [
        f"  {number} x {', '.join(names)}: {wide} -> {', '.join(map(str, outs))}"
        for (names, wide, outs), number in shapes.items()
    ]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Count the numbers in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def size(parameters: Iterable[nn.Parameter]) -> str:
    """Say how many bytes parameters take, by dtype."""
    sizes: Counter[str] = Counter()
    for parameter in parameters:
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    return " + ".join(f"{number:,} {dtype}" for dtype, number in sorted(sizes.items())) or "0"
