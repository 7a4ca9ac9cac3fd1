"""One row of the matrix: how to build a tiny random model of a real class, and what to feed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TOKENS, VOCABULARY = 2, 6, 40


@dataclass(frozen=True)
class Family:
    """A model class and how it is tried.

    Attributes:
        name: What users call it.
        library: Which library it comes from.
        build: Makes the model; equal seeds give equal weights.
        inputs: Makes keyword arguments of the forward, drawn by torch's generator.
        read: Takes the output tensor out of what the forward returns.
        causal: Whether it is a causal language model with `logits` and a cache.
        own_keys: Whether queries meet nothing but the keys that the projection makes.
        alone: Whether no other stream's keys and values join the attention.
        options: Further arguments of `prw.inject`.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    read: Callable[[Any], Tensor] = lambda output: output[0]
    causal: bool = False
    own_keys: bool = True
    alone: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def made(self) -> nn.Module:
        """Build the model, in evaluation mode and frozen, as injection leaves it.

        What is compared bit for bit is a frozen base: of a strided input, torch chooses some products by
        whether the weight requires a gradient, and on some CPUs they round differently.
        """
        torch.manual_seed(0)
        return self.build().eval().requires_grad_(False)

    def drawn(self, seed: int = 1) -> dict[str, Any]:
        """Draw inputs."""
        torch.manual_seed(seed)
        return self.inputs()


def first(output: Any) -> Tensor:
    return output[0]


def tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, TOKENS))}


def pictures(size: int = 8, name: str = "pixel_values") -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randn(BATCH, 3, size, size)}


def language(name: str, model: type, config: type, **options: Any) -> Family:
    """A causal language model of transformers, made tiny by the names that most configurations use."""
    tiny = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Family(
        name,
        "transformers",
        lambda: model(config(**{**tiny, **options})),
        tokens,
        lambda output: output.logits,
        causal=True,
    )


def encoder(name: str, model: type, config: type, **options: Any) -> Family:
    """A text encoder of transformers."""
    made = language(name, model, config, **options)
    return Family(name, "transformers", made.build, tokens)


def vision(
    name: str, model: type, config: type, size: int = 8, read: Callable[[Any], Tensor] = first, **options: Any
) -> Family:
    """A picture encoder of transformers."""
    tiny = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 4,
    }
    return Family(name, "transformers", lambda: model(config(**{**tiny, **options})), pictures(size), read)
