"""What part of an accumulated batch a forward is, under a Hugging Face Trainer; needs no transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prw.errors import RoutingError
from prw.layers.added_loss import knows_caller

SHIFTED = ("ForCausalLM", "ForConditionalGeneration", "CsmForConditionalGeneration")
"""Loss types of transformers that predict the next token, so that the first label of a row is no target."""


@knows_caller
def part_of_batch(model: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Compute the part of the batch's labels that a forward has.

    A Trainer passes `num_items_in_batch`, the number of labels in all forwards of a step on all processes;
    the model divides its loss by it, and the losses are then summed. An added loss must be weighted the same
    way, or it would grow with the number of forwards.

    Args:
        model: The model.
        kwargs: Keyword arguments of its forward.

    Returns:
        A scalar; None for a forward that no such Trainer calls.

    Raises:
        RoutingError: if the forward is part of a batch and has no labels to count.

    Source: `Trainer.get_batch_samples` and `compute_loss` of transformers 5.
    """
    total = kwargs.get("num_items_in_batch")
    if total is None:
        return None
    labels = kwargs.get("shift_labels")
    if labels is None:
        labels = kwargs.get("labels")  # [batch, tokens]
        if labels is not None and shifts_labels(model):
            labels = labels[..., 1:]  # -> [batch, tokens - 1]
    if labels is None:
        raise RoutingError(
            f"{type(model).__name__} was called with num_items_in_batch but without labels, so its part "
            "of the batch cannot be computed. Pass labels, or leave num_items_in_batch out."
        )
    part: Tensor = labels.ne(-100).sum() / total
    return part


def shifts_labels(model: nn.Module) -> bool:
    """Say whether a transformers model predicts the next token, by its Trainer's own rule."""
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return getattr(model, "loss_type", None) in SHIFTED and not encodes
