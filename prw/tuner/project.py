"""Calls a projection with or without its experts, whatever it is wrapped in."""

from __future__ import annotations

from torch import Tensor, nn

from prw.tuner.layer import PrwLinear


def project(module: nn.Module, hidden: Tensor, routed: bool = True) -> Tensor:
    """Call a key or value projection, saying whether its experts act on these tokens.

    Works for a plain projection, a PRW layer, and a PEFT LoRA around or inside a PRW layer.

    Args:
        module: The projection.
        hidden: Input, of shape [batch, tokens, d_in] or [tokens, d_in].
        routed: False gives what the projection gives without experts; nothing is decided or recorded.

    Returns:
        Of shape [..., d_out].
    """
    has_experts = any(isinstance(layer, PrwLinear) for layer in wrapped(module))
    output: Tensor = module(hidden, routed=routed) if has_experts else module(hidden)
    return output


def wrapped(module: nn.Module) -> list[nn.Module]:
    """List a module and what it wraps as `base_layer`, outermost first."""
    chain = [module]
    while "base_layer" in chain[-1]._modules:
        inner = chain[-1]._modules["base_layer"]
        if inner is None:
            break
        chain.append(inner)
    return chain
