"""A session: a run's model, loaded once, that generates one picture at a time for all its users.

It keeps nothing about those who asked. The page (app/), grids and batches generate here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

import prw
from recipes.cologen.config.annotators import OPTIONS
from recipes.cologen.data.annotators.annotate import annotate
from recipes.cologen.data.picture_files import fit_picture
from recipes.cologen.data.record import Image
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import PictureError, RunFolderError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.generation.prompts import check_prompt_given, check_words
from recipes.cologen.generation.sample import Source, sample_picture, size_to_draw, source_of
from recipes.cologen.generation.settings import FULL_POOL, NO_EXPERTS, PictureSettings
from recipes.cologen.pipeline.tasks import worded
from recipes.cologen.runs.files import CONFIG
from recipes.cologen.runs.loading import load_base, load_stage
from recipes.cologen.runs.reader import RunReader


class Generated(NamedTuple):
    """A picture and how it came about."""

    image: Image
    """Uint8 [height, width, 3], at the model's size."""
    source: Image
    """What the model saw, of the same size."""
    notices: tuple[str, ...]
    routing: prw.Routing | None
    """Decisions of the source's tokens; None without experts."""


class GenerationSession:
    """A finished run's model behind a lock: one picture is generated at a time."""

    def __init__(self, run: RunReader) -> None:
        """Load the base and the pool of the newest finished stage.

        Raises:
            RunFolderError: No stage is finished.
            BaseModelError: The base is missing or is no FLUX.
            ForeignCheckpointError: The pool cannot be read.
        """
        self.run, self.settings = run, run.settings
        self.finished = run.finished_stages()
        if not self.finished:
            raise RunFolderError(
                f"{run.path} has no finished stage yet; train it first: python -m recipes.cologen.train "
                f"--config {run.path / CONFIG} --stage {self.settings.stage_names[0]} "
                f"--output {run.path}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: FluxBase = load_base(self.settings, device)
        self.model.long_prompts = "refuse"  # the user who typed it should know
        self._held = self.finished[-1]
        self._weave = load_stage(self.model, run.pool(self._held), self._held)
        self._one_at_a_time = threading.Lock()

    @property
    def reads_guidance(self) -> bool:
        """Whether the base is guidance-distilled."""
        return self.model.reads_guidance

    def pools(self, task: str) -> tuple[str, ...]:
        """Names of the pools that can draw a task, the usual one first."""
        own = (task,) if task in self.finished else ()
        return (*own, FULL_POOL, NO_EXPERTS)

    def check_pool(self, name: str) -> None:
        """Refuse a pool that the run does not have.

        Raises:
            PictureError: There is none of that name.
            RunFolderError: Its stage is not finished.
        """
        known = (*self.settings.stage_names, FULL_POOL, NO_EXPERTS)
        if name not in known:
            raise PictureError(f"there is no pool {name!r}; expected one of {', '.join(known)}.")
        if name in self.settings.stage_names:
            self.run.pool(name)  # says so where it is not finished

    @property
    def made_maps(self) -> tuple[str, ...]:
        """Control maps that can be made from a photo: by OpenCV, or by the networks that the run names."""
        return tuple(dict.fromkeys((*OPTIONS["opencv"], *self.settings.data.annotators)))

    def source(
        self,
        task: str,
        prompt: str,
        image: Image,
        mask: Image | None = None,
        kind: str | None = None,
        size: str | None = None,
    ) -> Source:
        """Bring a picture to what the model reads, as `source_of` does."""
        return source_of(self.model, self.settings, task, prompt, image, mask, kind=kind, size=size)

    def made_map(self, image: Image, kind: str, size: str | None = None) -> Image:
        """Make a control map from a photo, at the size that the model reads.

        Raises:
            PictureError: This kind of map cannot be made from a photo alone.
        """
        if kind not in self.made_maps:
            raise PictureError(
                f"a map of kind {kind!r} cannot be made from a photo here; expected one of "
                f"{', '.join(self.made_maps)}. Give the map itself."
            )
        height, width = size_to_draw(self.settings, self.model, image, size)
        with self._one_at_a_time:
            return annotate(
                fit_picture(image, height, width).image,
                kind,
                self.settings.data.annotators,
                self.model.device,
            )

    def generate(
        self, wanted: PictureSettings, image: Image, mask: Image | None = None, kind: str | None = None
    ) -> Generated:
        """Generate a picture, after all earlier requests.

        Args:
            wanted: What is asked for.
            image: The source, uint8 [any height, any width, 3].
            mask: Inpainting: bright where to paint, of the same form; None when the hole is black in `image`.
            kind: Control: of the map that `image` is, where it is known.

        Raises:
            PromptError: There is no prompt, or the base cannot read it.
            PictureError: The source or the mask cannot be used, or there is no such pool.
            RunFolderError: The pool's stage is not finished.
        """
        if wanted.task not in VIEWS:
            raise PictureError(f"there is no task {wanted.task!r}; expected one of {', '.join(VIEWS)}.")
        check_prompt_given(wanted.prompt)
        self.check_pool(wanted.pool)
        seen = self.source(wanted.task, wanted.prompt, image, mask, kind, wanted.size)
        with self._one_at_a_time, self._pool(wanted.pool):
            # Behind the lock as well: a tokenizer keeps the padding of its last call for the next one.
            check_words(self.model, worded(wanted.prompt, wanted.task, None))
            recording = nullcontext() if wanted.pool == NO_EXPERTS else self._weave.record()
            with recording as routing:
                generated = sample_picture(self.model, self.settings, wanted, [seen.image])
        return Generated(generated, seen.image, seen.notices, routing)

    @contextmanager
    def _pool(self, name: str) -> Iterator[None]:
        """Use a pool: as of a stage, whole, or none."""
        if name == NO_EXPERTS:
            with self._weave.disabled():
                yield
            return
        stage = self.finished[-1] if name == FULL_POOL else name
        if not self.settings.pool.train_veteran_gates:
            with self._weave.as_of(stage):
                yield
            return
        # Their routers were trained on, so the pool of an earlier stage is in that stage's folder only.
        if stage != self._held:
            self._weave.eject()
            self._weave, self._held = load_stage(self.model, self.run.pool(stage), stage), stage
        yield
