"""The layers of a model that can carry experts: where each is, how wide, and what its name says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from prw.tuner.module_paths import module_at, plain_path
from prw.tuner.targets.block_code import source_of
from prw.tuner.targets.names import Role, role_of, split

LATENT = "kv_a_"
"""Start of the projection that compresses tokens in multi-head latent attention. Its output is cached, and
the second projection (`kv_b_proj`) makes the keys and values of every head from the cache, so that one gets
the experts: its decisions depend on nothing but what is cached."""
RETURNS_SCALE = re.compile(r"act_scaling_factor")
"""What the code of a linear layer contains that returns a scale beside its output, as in I-BERT."""
NOT_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True, eq=False)
class Projection:
    """A layer that can carry experts.

    Attributes:
        path: Its path in the model, without wrappers.
        block: Path of the attention block that it belongs to.
        name: Its name in that block.
        module: The layer, without wrappers around it; another adapter may be.
        parent: The block.
        in_features: Width of the input; 0 where the layer does not say.
        out_features: Width of the output; of an nn.MultiheadAttention that of queries, keys and values.
    """

    path: str
    block: str
    name: str
    module: nn.Module
    parent: nn.Module
    in_features: int
    out_features: int

    @property
    def role(self) -> Role:
        """What its name says."""
        return role_of(self.name)

    @property
    def letters(self) -> str:
        """Which of q, k and v it makes: by its name, or as an attention's `in_proj` of threefold width."""
        kind = type(self.parent).__name__.lower()
        attention = "attention" in kind or "attn" in kind
        if self.name == "in_proj" and self.out_features == 3 * self.in_features and attention:
            return "qkv"
        return self.role.letters

    @property
    def is_attention(self) -> bool:
        """Whether it is an nn.MultiheadAttention as a whole."""
        return isinstance(unwrapped(self.module), nn.MultiheadAttention)

    @property
    def is_latent(self) -> bool:
        """Whether it compresses tokens for a second projection, which makes the keys and values."""
        return self.name.startswith(LATENT)


def projections_of(model: nn.Module) -> dict[str, Projection]:
    """List the layers that can carry experts by path, in the model's order.

    The insides of adapters and of nn.MultiheadAttention are left out.
    """
    found: dict[str, Projection] = {}
    inside: tuple[str, ...] = ("",) if isinstance(model, nn.MultiheadAttention) else ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if can_carry_experts(module):
            path = plain_path(name)
            block, last = split(path)
            found[path] = Projection(path, block, last, module, module_at(model, block), *widths_of(module))
        if isinstance(module, BaseTunerLayer | nn.MultiheadAttention):
            inside = (*inside, name + ".")
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a PEFT layer, or the module itself."""
    inner: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner


def can_carry_experts(module: nn.Module) -> bool:
    """Whether a module is linear, of a kind that PEFT knows, or an nn.MultiheadAttention."""
    inner = unwrapped(module)
    if isinstance(inner, nn.Linear | nn.MultiheadAttention):
        return True
    return is_quantised(inner) or (type(inner).__name__ == "Conv1D" and not isinstance(inner, NOT_LINEAR))


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a quantised linear layer of a class of its own: without submodules, with widths."""
    if isinstance(module, NOT_LINEAR) or any(True for _ in module.children()):
        return False
    kind: Any = type(module)  # mypy takes a module's class for unhashable
    has_width = any(hasattr(module, name) for name in ("in_features", "infeatures"))
    if not has_width or RETURNS_SCALE.search(source_of(kind)):
        return False
    return "Linear" in kind.__name__ and all(widths_of(module))


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Read the input and output width of a projection; zeros where it does not say."""
    inner: Any = unwrapped(module)
    if isinstance(inner, nn.MultiheadAttention):
        return (inner.kdim if inner.kdim == inner.vdim else 0), 3 * inner.embed_dim
    if not isinstance(inner, nn.Linear) and hasattr(inner, "in_features") and hasattr(inner, "out_features"):
        return int(inner.in_features), int(inner.out_features)
    in_features, out_features = _get_in_out_features(inner)
    return in_features or 0, out_features or 0
