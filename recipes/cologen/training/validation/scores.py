"""Scores a task on held-out examples: generates every picture, asks the oracle, counts where routing went.

Which tasks are scored when, and what is written down, is the caller's business. Nothing here touches global
random state or leaves the model in another mode: a run that validates and one that does not train alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prw import Weave
from recipes.cologen.config.model import Shift
from recipes.cologen.data import oracle
from recipes.cologen.data.opening import RecordSource
from recipes.cologen.data.record import Example, Image, MissingMetadataError
from recipes.cologen.data.scene import Scene
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import AnnotatorError, BrokenPictureError
from recipes.cologen.flux.base import FluxBase, SourceTimestep
from recipes.cologen.flux.sampling import generate
from recipes.cologen.flux.tokens import ImageTokens, TextTokens
from recipes.cologen.flux.transfer import to_unit_range

_logger = logging.getLogger(__name__)
Encode = Callable[[Sequence[Example]], tuple[TextTokens, Sequence[ImageTokens]]]
"""Encodes prompts and sources of examples of one size."""
_MOST_TRIES = 1000
"""Records of a source without end that are tried for a first example."""


@dataclass(frozen=True)
class TaskScore:
    """What a model made of the examples of one task."""

    task: str
    values: tuple[float, ...]
    """For each example 1 or 0 by the oracle or, where no oracle can judge, the closeness to the target."""
    kinds: tuple[str, ...]
    """The variant of the task that each example is."""
    exact: bool
    """Whether the oracle judged (world examples); else `values` are 1 - mean |output - target| / 255."""
    images: tuple[Image, ...]
    """The generated pictures, in the order of the examples."""
    sites: tuple[str, ...]
    """Names of the routing sites; empty without experts."""
    experts: tuple[str, ...]
    """Names of the experts, oldest first; empty without experts."""
    usage: Tensor
    """Share of each site's decisions that went to each expert, [sites, experts]."""

    @property
    def score(self) -> float:
        """Mean over all examples."""
        return float(np.mean(self.values))

    @property
    def by_kind(self) -> dict[str, float]:
        """Mean over the examples of each variant of the task."""
        values, kinds = np.array(self.values), np.array(self.kinds)
        return {str(kind): float(values[kinds == kind].mean()) for kind in sorted(set(self.kinds))}


def _warn(problem: str) -> None:
    _logger.warning("%s; the next one is taken", problem)


def held_out_examples(
    source: RecordSource,
    task: str,
    count: int,
    *,
    seed: int,
    skipped: Callable[[str], None] = _warn,
) -> list[Example]:
    """The first `count` examples of a task from a source that training does not read.

    A folder with fewer pictures is gone through several times, each time with other views of its pictures.
    As in training, a record that cannot be read or lacks what the view needs is left out, and the next taken.

    Args:
        source: A world with a seed of its own, or another folder than the one trained on.
        task: A key of `VIEWS`.
        count: How many; at least one.
        seed: Seed of the views.
        skipped: Called with what is wrong with a record that was left out.

    Raises:
        BrokenPictureError, MissingMetadataError: No record serves; this is what is wrong with the last.
        ValueError: No example was asked for.
    """
    if count < 1:
        raise ValueError(f"scoring {task} needs at least one example, got count={count}")
    length = len(source) if isinstance(source, Sized) else None
    examples: list[Example] = []
    index = 0
    while len(examples) < count:
        turn = 0 if length is None else index // length
        view_seed = seed if turn == 0 else derive_seed(seed, "round", turn)
        try:
            examples.append(VIEWS[task](source.record(index), view_seed))
        except (BrokenPictureError, MissingMetadataError) as error:
            if not examples and index >= (_MOST_TRIES if length is None else length):
                raise  # a source without one whole record would never end
            skipped(f"held out for {task}: {error}")
        index += 1
    return examples


def evaluate_task(
    model: FluxBase,
    weave: Weave | None,
    examples: Sequence[Example],
    *,
    steps: int,
    seed: int,
    batch_size: int,
    source_timestep: SourceTimestep,
    guidance: float | None = None,
    true_cfg_scale: float = 1.0,
    negative_prompt: str = "",
    shift: Shift = "base",
    encode: Encode | None = None,
) -> TaskScore:
    """Generate the target of every example and score it.

    The noise of example i depends on `seed` and i alone, not on how examples are batched.

    Args:
        model: The base with its source stream; its transformer may hold a pool.
        weave: The handle of that pool, to count its decisions; None for a bare base.
        examples: Of one task.
        steps: Sampling steps.
        seed: Seed of the starting noise.
        batch_size: Most pictures that are generated at once; all of a batch have one size.
        source_timestep: "same" or "zero", as the pool was trained.
        guidance: Scale for a guidance-distilled base; other bases do not read it.
        true_cfg_scale: Scale of true classifier-free guidance; 1 is none.
        negative_prompt: What true guidance goes away from.
        shift: How the sampling steps are shifted towards noise.
        encode: Encodes prompts and sources of a batch; None: the base does, all at once.

    Raises:
        AnnotatorError: A source is still to be annotated by an annotator.
        ValueError: There are no examples, or they are of several tasks.
    """
    tasks = {example.task for example in examples}
    if len(tasks) != 1:
        raise ValueError(
            f"evaluate_task scores the examples of one task, got {sorted(tasks) or 'no examples'}"
        )
    _check_sources(examples)
    usage = _UsageCount()
    images: list[Image] = []
    while len(images) < len(examples):
        batch = same_sized(examples[len(images) :], batch_size)
        seeds = [derive_seed(seed, "noise", len(images) + place) for place in range(len(batch))]
        with usage.counting(weave, len(batch)):
            pixels = generate(
                model,
                *(_given(model, batch) if encode is None else encode(batch)),
                generator=[torch.Generator().manual_seed(noise_seed) for noise_seed in seeds],
                height=batch[0].target.shape[0],
                width=batch[0].target.shape[1],
                steps=steps,
                source_timestep=source_timestep,
                guidance=guidance if model.reads_guidance else None,
                true_cfg_scale=true_cfg_scale,
                negative_prompt=negative_prompt,
                shift=shift,
            )
        images.extend(to_pictures(pixels))
    return TaskScore(
        task=tasks.pop(),
        values=tuple(_judge(example, image) for example, image in zip(examples, images, strict=True)),
        kinds=tuple(example.kind for example in examples),
        exact=all(_has_scene(example) for example in examples),
        images=tuple(images),
        sites=usage.sites,
        experts=usage.experts,
        usage=usage.mean(),
    )


def _given(model: FluxBase, batch: Sequence[Example]) -> tuple[list[str], list[Tensor]]:
    """Prompts and sources as they are, for the base to encode."""
    return [example.prompt for example in batch], stacked_sources(batch, model.device)


def _check_sources(examples: Sequence[Example]) -> None:
    waiting = sorted({str(example.annotator) for example in examples if example.annotator is not None})
    if waiting:
        raise AnnotatorError(
            f"sources wait for {', '.join(waiting)} maps, and would be read as they are; annotate them first "
            "with Annotators.complete"
        )


def to_pictures(pixels: Tensor) -> list[Image]:
    """Pixels [batch, 3, height, width] in [-1, 1] as uint8 pictures [height, width, 3], rounded."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())  # [batch, height, width, 3]


def same_sized(examples: Sequence[Example], batch_size: int) -> Sequence[Example]:
    """The first examples, at most `batch_size`, that share the sizes of the very first."""
    sizes = [
        [picture.shape for picture in (example.target, example.source, *example.further)]
        for example in examples[:batch_size]
    ]
    same = next((place for place, size in enumerate(sizes) if size != sizes[0]), len(sizes))
    return examples[:same]


def stacked_sources(examples: Sequence[Example], device: torch.device) -> list[Tensor]:
    """The first sources of all examples, then the second ones, and so on."""
    places = zip(*((example.source, *example.further) for example in examples), strict=True)
    stacks = (torch.from_numpy(np.stack(pictures)) for pictures in places)
    return [to_unit_range(stack.permute(0, 3, 1, 2), device) for stack in stacks]


def _has_scene(example: Example) -> bool:
    return isinstance(example.meta.get("scene"), Scene)


def _judge(example: Example, image: Image) -> float:
    """1 or 0 by the oracle; the closeness to the target where the example shows no scene of the world."""
    if _has_scene(example):
        return float(oracle.score(example, image))
    return 1.0 - float(np.abs(image.astype(np.float32) - example.target).mean()) / 255


class _UsageCount:
    """Adds up where the decisions of several batches went, each batch weighed by its examples."""

    def __init__(self) -> None:
        self.sites: tuple[str, ...] = ()
        self.experts: tuple[str, ...] = ()
        self._total: Tensor | None = None
        self._examples = 0

    @contextmanager
    def counting(self, weave: Weave | None, num_examples: int) -> Iterator[None]:
        """Record the decisions made inside."""
        if weave is None:
            yield
            return
        with weave.record() as routing:
            yield
        if routing.decisions:
            usage = routing.usage().detach().double().cpu() * num_examples
            self.sites, self.experts = tuple(routing.decisions), routing.experts
            self._total = usage if self._total is None else self._total + usage
            self._examples += num_examples

    def mean(self) -> Tensor:
        """Share of each expert at each site, [sites, experts]; empty when nothing was routed."""
        return torch.zeros(0, 0) if self._total is None else (self._total / self._examples).float()
