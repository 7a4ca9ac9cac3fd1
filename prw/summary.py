"""The text that `Weave.summary()` gives: sites, experts, settings, kernel, parameters and bytes."""

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
        kernel: The kernel that computes its experts, and the reason for the choice.
    """
    settings = config.settings()
    training = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    experts = [f"{name} (imported)" if name in config.imported else name for name in config.experts]
    newest = " (newest frozen too)" if config.newest_frozen and experts else ""
    gate = f"{settings.gate} gate" + (f", top {settings.top_k}" if settings.top_k > 1 else "")
    lines = [
        f"{len(experts)} experts at {len(sites)} sites of {model}",
        *site_lines(sites),
        f"experts: {', '.join(experts) or 'none yet'}{newest}",
        f"rank {settings.rank}, scale {settings.scale:g}, {gate}, {settings.granularity}s",
        f"kernel: {kernel}",
        f"parameters: {count(parameters):,} in the pool, {count(training):,} train, {count(frozen):,} frozen",
        f"bytes: {bytes_of(parameters)}; training {bytes_of(training)}; frozen {bytes_of(frozen)}",
    ]
    return "\n".join(lines)


def site_lines(sites: Sequence[SiteRecord]) -> list[str]:
    """Count the sites that have the same projections and widths."""
    shapes = Counter(
        (tuple(path.rpartition(".")[2] for path in site.modules), site.in_features, site.out_features)
        for site in sites
    )
    return [
        f"  {number} x {', '.join(names)}: {d_in} -> {', '.join(map(str, d_out))}"
        for (names, d_in, d_out), number in shapes.items()
    ]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Count the numbers in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def bytes_of(parameters: Iterable[nn.Parameter]) -> str:
    """Sum up the bytes of parameters, by dtype."""
    sizes: Counter[str] = Counter()
    for parameter in parameters:
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    return " + ".join(f"{number:,} {dtype}" for dtype, number in sorted(sizes.items())) or "0"
