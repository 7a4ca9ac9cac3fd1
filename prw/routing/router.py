"""The router: hidden states -> noisy logits over the experts -> a decision (equations 2-4).

    hidden [batch, tokens, d] -> features [batch, items, d] -> logits [batch, items, experts] -> decision

One feature vector per item (a token, or a whole sample), in float32 at least: bf16 logits tie and unbalance
experts. One router vector per expert, and one noise vector.
"""

# Shape suffixes: B batch (or samples), I items, D features, E experts, F rows (batch and items in one axis).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prw.config import Granularity, PoolSettings
from prw.errors import RoutingError
from prw.execution import traced
from prw.precision import product_dtype, without_autocast
from prw.routing.decision import RoutingDecision, top_k

EPSILON = 1e-6

ALONE, BLOCK = 8, 32
"""The first experts are scored one by one, later ones in blocks of fixed size that read the features once."""


def decide(
    hidden: Tensor,
    router_vectors: Sequence[Tensor],
    noise_vectors: Sequence[Tensor],
    settings: PoolSettings,
    routed: Tensor | None = None,
    noisy: bool = True,
    groups: SampleGroups | None = None,
) -> RoutingDecision:
    """Choose an expert, or top_k of them, for every item of one site.

    Args:
        hidden: What the projections of the site read, of shape [batch, tokens, d]. The router sees it rounded
            as their products see it, so that training under autocast and inference in 16 bits decide alike.
        router_vectors: One for each expert to choose from, of shape [1, d].
        noise_vectors: Likewise; empty if they have none.
        settings: Granularity, gate, input normalisation and top_k.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all.
        noisy: Whether noise is added; if not, noise vectors that train get a gradient of zero.
        groups: Which rows are of one sample, where whole samples are routed; None means those of one place in
            axis 0. The decision is then of shape [samples, 1].
    """
    hidden = hidden.to(product_dtype(hidden))
    with without_autocast(hidden.device):
        if noise_vectors and not noisy:
            router_vectors, noise_vectors = kept_in_graph(router_vectors, noise_vectors), []
        # [batch, tokens, d] -> [batch, items, d]
        features_BID = router_features(hidden, settings.granularity, routed, settings.router_norm, groups)
        if noise_vectors:
            logits_BIE, deviations_BIE = several_logits(features_BID, [router_vectors, noise_vectors])
            logits_BIE = noisy_logits(logits_BIE, deviations_BIE)
        else:
            logits_BIE = router_logits(features_BID, router_vectors)
        if groups is not None:
            routed = groups.any_routed(routed, features_BID)
        elif routed is not None and settings.granularity == "sample":
            routed = routed.any(dim=1, keepdim=True)  # [batch, tokens] -> [batch, 1]
        return top_k(logits_BIE, settings.gate, routed, settings.top_k)


def as_batch(hidden: Tensor) -> Tensor:
    """View hidden states as [batch, tokens, d]; [tokens, d] is one sample, further axes count as tokens.

    Raises:
        RoutingError: if there is no token axis.
    """
    if hidden.dim() < 2:
        raise RoutingError(
            f"a routed projection needs hidden states of shape [tokens, d] or [batch, tokens, d], got "
            f"{tuple(hidden.shape)}. Add the missing axis with hidden.unsqueeze(0)."
        )
    if hidden.dim() == 2:
        return hidden.unsqueeze(0)
    return hidden.flatten(1, -2)


def router_features(
    hidden: Tensor,
    granularity: Granularity,
    routed: Tensor | None,
    norm: bool,
    groups: SampleGroups | None = None,
) -> Tensor:
    """Make one feature vector per item.

    Args:
        hidden: What the projection reads, of shape [batch, tokens, d].
        granularity: `token`: a feature per token. `sample`: the mean of the sample's routed tokens; pooled
            before the router and its noise, since averaging per-token noise would shrink it.
        routed: Which tokens are routed, bool of shape [batch, tokens]; None means all, pads included, which
            then enter the mean.
        norm: Whether each feature vector is divided by its root mean square.
        groups: Which rows are of one sample; None means those of one place in axis 0.

    Returns:
        Features of shape [batch, items, d], float32 (float64 stays float64).
    """
    features_BID = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if granularity == "sample":
        features_BID = pooled(features_BID, routed) if groups is None else groups.mean(features_BID, routed)
    if norm:
        features_BID = features_BID * torch.rsqrt(features_BID.square().mean(-1, keepdim=True) + EPSILON)
    return features_BID


def pooled(features: Tensor, routed: Tensor | None) -> Tensor:
    """Average each sample's routed tokens: [batch, tokens, d] -> [batch, 1, d]; zeros if none is routed."""
    if routed is None:
        return features.mean(1, keepdim=True)
    picked = torch.where(routed.unsqueeze(-1), features, torch.zeros_like(features))
    count = routed.sum(1).clamp(min=1).to(features.dtype)  # [batch]
    return (picked.sum(1) / count.unsqueeze(-1)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class SampleGroups:
    """The sample of each row of an input, where axis 0 does not say.

    Attributes:
        index: Sample of each row, int64 of shape [rows]; rows are an input's axes but the last, flattened.
        count: Number of samples.
    """

    index: Tensor
    count: int

    def mean(self, features: Tensor, routed: Tensor | None) -> Tensor:
        """Average the routed rows of each sample; zeros where none is routed.

        Args:
            features: Of shape [batch, tokens, d], with batch * tokens rows.
            routed: Which rows are routed, bool of shape [batch, tokens]; None means all.

        Returns:
            Of shape [samples, 1, d].
        """
        rows_FD = features.flatten(0, 1)
        counted_F = self.ones(routed, rows_FD)
        picked_FD = torch.where(counted_F.bool().unsqueeze(-1), rows_FD, torch.zeros_like(rows_FD))
        # [rows, d] -> [samples, d]
        sums = rows_FD.new_zeros(self.count, rows_FD.shape[-1]).index_add(0, self.index, picked_FD)
        return (sums / self.sizes(counted_F).clamp(min=1.0).unsqueeze(-1)).unsqueeze(1)

    def any_routed(self, routed: Tensor | None, like: Tensor) -> Tensor:
        """Mark the samples that have a routed row, bool of shape [samples, 1]."""
        return (self.sizes(self.ones(routed, like)) > 0).unsqueeze(1)

    def ones(self, routed: Tensor | None, like: Tensor) -> Tensor:
        """Return one for each row that is routed and zero for the others, of shape [rows]."""
        if routed is None:
            return like.new_ones(self.index.shape[0])
        return routed.flatten().to(like.dtype)

    def sizes(self, counted_F: Tensor) -> Tensor:
        """Count the rows of each sample: [rows] -> [samples]."""
        return counted_F.new_zeros(self.count).index_add(0, self.index, counted_F)

    def to_rows(self, decision: RoutingDecision) -> RoutingDecision:
        """Repeat each sample's decision for its rows: [samples, 1] -> [1, rows].

        All rows of a sample go together, as its tokens do where axis 0 is the sample.
        """
        return RoutingDecision(*(part[self.index, 0].unsqueeze(0) for part in decision))


def noisy_logits(logits_BIE: Tensor, noise_logits_BIE: Tensor) -> Tensor:
    """Add Gaussian noise of deviation softplus(noise_logits), by torch's generator (equation 2)."""
    return logits_BIE + torch.randn_like(logits_BIE) * F.softplus(noise_logits_BIE)


def kept_in_graph(vectors: Sequence[Tensor], unused: Sequence[Tensor]) -> list[Tensor]:
    """Tie vectors that have no part in the result to ones that have: same values, and a gradient of zero.

    Data-parallel training waits for a gradient of everything that trains, and noise vectors have none while
    no noise is added.
    """
    if not torch.is_grad_enabled():
        return list(vectors)
    return [
        torch.where(torch.ones_like(used, dtype=torch.bool), used, idle.to(used))
        if idle.requires_grad
        else used
        for used, idle in zip(vectors, unused, strict=True)
    ]


def router_logits(features_BID: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Score features against one router vector per expert.

    The shape of the product that scores an expert depends on its number alone: one product for all would
    round an old expert's logit differently once the pool has grown. In backward there is one for all, since
    a product each would write a gradient of the features for every expert.

    Args:
        features_BID: Of shape [batch, items, d].
        vectors: One per expert, each of shape [1, d]; on any device, as a replica of nn.DataParallel has only
            its features on a device of its own.

    Returns:
        Logits of shape [batch, items, experts].
    """
    (logits_BIE,) = several_logits(features_BID, [vectors])
    return logits_BIE


def several_logits(features_BID: Tensor, lists: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Score features against several lists of vectors at once, all of one length; see `router_logits`."""
    experts = len(lists[0])
    vectors = [vector.to(features_BID) for listed in lists for vector in listed]
    if traced():
        scores = F.linear(features_BID, torch.cat(vectors))  # -> [batch, items, lists * experts]
    else:
        scores = Scores.apply(features_BID, experts, *vectors)  # type: ignore[no-untyped-call]
    logits: tuple[Tensor, ...] = scores.split(experts, dim=-1)
    return logits


class Scores(torch.autograd.Function):
    """Products in blocks, and their gradients in one."""

    @staticmethod
    def forward(ctx: Any, features_BID: Tensor, experts: int, *vectors: Tensor) -> Tensor:
        """Return the scores of all lists, one list after the other."""
        ctx.save_for_backward(features_BID, *vectors)
        # As rows: of a strided input, torch would choose a product by whether the vector trains.
        scores, rows_FD = [], features_BID.flatten(0, 1)  # [batch, items, d] -> [batch * items, d]
        for first in range(0, len(vectors), experts):
            scores += in_blocks(rows_FD, vectors[first : first + experts])
        items = features_BID.shape[:2]
        return torch.cat(scores, dim=-1).view(*items, len(vectors))  # -> [batch, items, lists * experts]

    @staticmethod
    def backward(ctx: Any, grad_BIE: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the features and of the vectors that train."""
        features_BID, *vectors = ctx.saved_tensors
        of_features, _, *needed = ctx.needs_input_grad
        # A single expert has all of the softmax, whose gradient is zero; only a CPU can look without waiting.
        nothing = grad_BIE.is_cpu and not grad_BIE.any()
        # [batch, items, experts] x [experts, d] -> [batch, items, d]
        of_features_BID = grad_BIE @ torch.cat(vectors) if of_features and not nothing else None
        training = [place for place, wanted in enumerate(needed) if wanted]
        found: list[Tensor | None] = [None] * len(vectors)
        if training:
            # [training, batch * items] x [batch * items, d] -> [training, d]
            grads = torch.stack([grad_BIE[..., place].flatten() for place in training])
            for place, gradient in zip(training, grads @ features_BID.flatten(0, 1), strict=True):
                found[place] = gradient.unsqueeze(0)
        return of_features_BID, None, *found


def in_blocks(rows_FD: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Score the first vectors one by one and later ones in blocks of fixed size."""
    scores = [F.linear(rows_FD, vector) for vector in vectors[:ALONE]]  # [rows, d] -> [rows, 1] each
    for start in range(ALONE, len(vectors), BLOCK):
        block = torch.cat(list(vectors[start : start + BLOCK]))  # [up to BLOCK, d]
        padded = F.pad(block, (0, 0, 0, BLOCK - block.shape[0]))
        scores.append(F.linear(rows_FD, padded)[..., : block.shape[0]])
    return scores
