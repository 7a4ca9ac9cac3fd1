"""A call's result: its pictures, and which expert each source token went to, at every block and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from prw import Weave
from prw.routing import Routing
from recipes.cologen.data.record import Image
from recipes.cologen.errors import RoutingQuestionError

NOT_COMPUTED = -1
"""Stands for a block that a cache of blocks skipped at a step."""


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Every routing decision of one call of the pipeline.

    With `source_timestep="zero"` the source runs once, so there is one step.

    Attributes:
        experts: Names of the experts that could be chosen, oldest first.
        sites: Names of the attention blocks, in the model's order.
        steps: Numbers of the sampling steps at which the source ran.
        chosen: Number of the chosen expert, int8 `[steps, sites, pictures, items, k]`, likeliest first; -1
            where a cache skipped the block. `items` are the sources' tokens, one source after the other, or
            one where whole samples are routed; k is the pool's top_k.
        grids: Token rows and columns of the first source, and of further ones.
        groups: What the source stream saw, for each picture: its sources, uint8 [height, width, 3] each.
    """

    experts: tuple[str, ...]
    sites: tuple[str, ...]
    steps: tuple[int, ...]
    chosen: Tensor
    grids: tuple[tuple[int, int], ...]
    groups: tuple[tuple[Image, ...], ...]

    @property
    def rows(self) -> int:
        """Token rows of the first source."""
        return self.grids[0][0]

    @property
    def columns(self) -> int:
        """Token columns of the first source."""
        return self.grids[0][1]

    @property
    def sources(self) -> tuple[Image, ...]:
        """The first source of each picture."""
        return tuple(group[0] for group in self.groups)

    def shares(self) -> Tensor:
        """Fraction of choices that fell on each expert, float32 `[steps, sites, experts]`.

        A row sums to one, or to zero where a cache skipped the block.
        """
        counted = self._counted().flatten(2, 4).sum(2)
        return counted / counted.sum(-1, keepdim=True).clamp(min=1)

    def share(self, expert: str) -> float:
        """Fraction of all choices that fell on an expert.

        Raises:
            RoutingQuestionError: There is no such expert.
        """
        if expert not in self.experts:
            raise RoutingQuestionError(
                f"no expert {expert!r} was routed; these were: {', '.join(self.experts)}."
            )
        counted = self._counted()
        return float(counted[..., self.experts.index(expert)].sum() / counted.sum())

    def region(
        self,
        picture: int = 0,
        sites: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        source: int = 0,
    ) -> Tensor:
        """Fraction of choices, over blocks and steps, that sent each place to each expert.

        Args:
            picture: Number of the picture.
            sites: Blocks that count; None means all.
            steps: Numbers of the steps that count; None means all.
            source: Which of the picture's sources, where it has several.

        Returns:
            Float32 `[experts, rows, columns]`; the experts of a place sum to one.

        Raises:
            RoutingQuestionError: There is no such picture, source, block or step, or a cache skipped all of
                them.
        """
        if not 0 <= picture < self.chosen.shape[2]:
            raise RoutingQuestionError(
                f"there is no picture {picture}; the call generated {self.chosen.shape[2]}."
            )
        if not 0 <= source < len(self.grids):
            raise RoutingQuestionError(f"there is no source {source}; each picture has {len(self.grids)}.")
        at_steps = _places(steps, self.steps, "step")
        at_sites = _places(sites, self.sites, "block")
        counted = self._counted()[at_steps][:, at_sites, picture].sum((0, 1, 3)).float()  # [items, experts]
        if not counted.sum():
            raise RoutingQuestionError("a cache of blocks skipped all of these blocks at these steps.")
        fractions = counted / counted.sum(-1, keepdim=True)
        sizes = [rows * columns for rows, columns in self.grids]
        first = sum(sizes[:source])
        mine = fractions.expand(sum(sizes), -1)[first : first + sizes[source]]
        return mine.T.reshape(-1, *self.grids[source])

    def _counted(self) -> Tensor:
        """One where an expert was chosen, `[steps, sites, pictures, items, k, experts]`."""
        return self.chosen.unsqueeze(-1) == torch.arange(len(self.experts), dtype=torch.int8)


def _places(wanted: Sequence[str] | Sequence[int] | None, known: Sequence[object], what: str) -> list[int]:
    if wanted is None:
        return list(range(len(known)))
    missing = [one for one in wanted if one not in known]
    if missing or not wanted:
        listed = ", ".join(map(str, known))
        raise RoutingQuestionError(f"there is no {what} {missing or 'asked for'}; recorded were: {listed}.")
    return [known.index(one) for one in wanted]


class RoutingRecorder:
    """Collects the decisions of a call, step by step."""

    def __init__(self, weave: Weave) -> None:
        """Start empty."""
        self._weave, self._experts = weave, weave.experts
        self._sites = tuple(site.name for site in weave.sites)
        self._taken: dict[int, tuple[Routing, Tensor]] = {}

    @contextmanager
    def step(self, number: int, rows: Callable[[], Tensor]) -> Iterator[None]:
        """Record what is decided inside a `with` block.

        Args:
            number: Of the step.
            rows: Gives, afterwards, which row of the decisions each picture reads.
        """
        with self._weave.record() as routing:
            yield
        if routing.decisions:
            self._experts = routing.experts
            self._taken[number] = (routing, rows())

    def trace(
        self, grids: tuple[tuple[int, int], ...], groups: tuple[tuple[Image, ...], ...]
    ) -> RoutingTrace:
        """Lay all decisions out as one array.

        Raises:
            RoutingQuestionError: Nothing was routed.
        """
        if not self._taken:
            raise RoutingQuestionError("no step was run, so nothing was routed: was the call interrupted?")
        chosen = torch.stack([self._of_step(*taken) for taken in self._taken.values()])
        return RoutingTrace(self._experts, self._sites, tuple(self._taken), chosen, grids, groups)

    def _of_step(self, routing: Routing, rows: Tensor) -> Tensor:
        found = {
            site: decisions[0].choices[rows.to(decisions[0].choices.device)].to("cpu", torch.int8)
            for site, decisions in routing.decisions.items()
        }
        skipped = torch.full_like(next(iter(found.values())), NOT_COMPUTED)
        return torch.stack([found.get(site, skipped) for site in self._sites])


@dataclass
class CoLoGenPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """Pictures, and the routing where it was asked for."""

    images: Any
    """PIL pictures, or a numpy array `[pictures, height, width, 3]`, or a tensor `[pictures, 3, height,
    width]`, in [0, 1]; or packed latents."""
    routing: RoutingTrace | None = None
    """With `output_routing=True`: which expert each source token went to, at every block and step."""
