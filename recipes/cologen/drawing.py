"""The drawing room: a run's model, loaded once, that draws one picture at a time for whoever asks.

It keeps nothing about those who asked. The page (app/) and batches (generate_batch.py) draw here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

import prw
from recipes.cologen.data.control import MAPS, PROMPTS
from recipes.cologen.data.record import Image, Record
from recipes.cologen.data.scene import SIDE
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import PictureError, RunFolderError
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.sampling import generate
from recipes.cologen.picture_settings import FULL_POOL, NO_EXPERTS, PictureSettings
from recipes.cologen.pictures import cut_hole, fit_picture
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.training.batches import to_unit_range
from recipes.cologen.training.growth import load_base, load_stage
from recipes.cologen.training.validation import to_pictures
from recipes.cologen.words import check_words

MADE_MAPS = ("canny", "soft_edge", "lineart")
"""Control maps that can be made from any photo; depth and classes need a network or a data set."""


class Source(NamedTuple):
    """What the model gets to see, and what had to be said about that."""

    image: Image
    notices: tuple[str, ...]


class Drawn(NamedTuple):
    """A picture and how it came about."""

    image: Image
    """Uint8 [height, width, 3], at the model's size."""
    source: Image
    """What the model saw, of the same size."""
    notices: tuple[str, ...]
    routing: prw.Routing | None
    """Decisions of the source's tokens; None without experts."""


class DrawingRoom:
    """A finished run's model behind a lock: whoever draws waits for the one before."""

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
                f"--config {run.path / 'config.yaml'} --stage {self.settings.stage_names[0]} "
                f"--output {run.path}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: FluxModel = load_base(self.settings, device)
        self._held = self.finished[-1]
        self._weave = load_stage(self._model, run.pool(self._held), self._held)
        self._one_at_a_time = threading.Lock()

    @property
    def reads_guidance(self) -> bool:
        """Whether the base is guidance-distilled."""
        return bool(self._model.transformer.config.guidance_embeds)

    def pools(self, task: str) -> tuple[str, ...]:
        """Names of the pools that can draw a task, the usual one first."""
        own = (task,) if task in self.finished else ()
        return (*own, FULL_POOL, NO_EXPERTS)

    def size(self, image: Image) -> tuple[int, int]:
        """Height and width to draw at: those of training, else the picture's own in whole tokens."""
        data = self.settings.data
        if data.source == "world":
            return SIDE, SIDE
        if data.size is not None:
            return data.size
        side = 2 * self._model.vae_scale_factor
        height, width = (max(side, length // side * side) for length in image.shape[:2])
        return height, width

    def source(
        self, task: str, prompt: str, image: Image, mask: Image | None = None, name: str = "the picture"
    ) -> Source:
        """Bring a picture to what the model reads: its size, and for inpainting its hole.

        Raises:
            PictureError: There is no hole, nothing but a hole, or a mask for another task.
        """
        size = self.size(image)
        fitted = fit_picture(image, *size, name=name)
        notices = [fitted.notice]
        read = fitted.image
        if task == "inpainting":
            hole = None if mask is None else fit_picture(mask, *size, name="the mask")
            read = cut_hole(read, None if hole is None else hole.image)
        elif mask is not None:
            raise PictureError(f"a mask is for inpainting; {task} reads the whole picture.")
        if task == "control" and not prompt.startswith(tuple(PROMPTS.values())):
            kinds = ", ".join(f'"{words}"' for words in PROMPTS.values())
            notices.append(f"control was trained on prompts that begin with the kind of map: {kinds}.")
        return Source(read, tuple(notice for notice in notices if notice is not None))

    def made_map(self, image: Image, kind: str) -> Image:
        """Make a control map from a photo, at the size that the model reads.

        Raises:
            PictureError: This kind of map cannot be made from a photo alone.
        """
        if kind not in MADE_MAPS:
            raise PictureError(
                f"a map of kind {kind!r} cannot be made from a photo here; expected one of "
                f"{', '.join(MADE_MAPS)}. Give the map itself."
            )
        fitted = fit_picture(image, *self.size(image))
        return MAPS[kind](Record("a photo", fitted.image, caption=""))

    def draw(self, wanted: PictureSettings, image: Image, mask: Image | None = None) -> Drawn:
        """Draw a picture, when all that were asked for before are drawn.

        Args:
            wanted: What is asked for.
            image: The source, uint8 [any height, any width, 3].
            mask: Inpainting: bright where to paint, of the same form; None when the hole is black in `image`.

        Raises:
            PromptError: The base cannot read the prompt.
            PictureError: The source or the mask cannot be used.
            RunFolderError: The pool's stage is not finished.
        """
        if wanted.task not in VIEWS:
            raise PictureError(f"there is no task {wanted.task!r}; expected one of {', '.join(VIEWS)}.")
        seen = self.source(wanted.task, wanted.prompt, image, mask)
        with self._one_at_a_time, self._pool(wanted.pool):
            # Behind the lock as well: a tokenizer keeps the padding of its last call, for whoever calls next.
            check_words(self._model, wanted.prompt)
            recording = nullcontext() if wanted.pool == NO_EXPERTS else self._weave.record()
            with recording as routing:
                drawn = self._drawn(wanted, seen.image)
        return Drawn(drawn, seen.image, seen.notices, routing)

    def _drawn(self, wanted: PictureSettings, source: Image) -> Image:
        # The one place where pictures are sampled: CoLoGenPipeline can take it over.
        pixels = generate(
            self._model,
            [wanted.prompt],
            to_unit_range(torch.from_numpy(source).permute(2, 0, 1)[None], self._model.device),
            generator=[torch.Generator().manual_seed(wanted.seed)],
            height=source.shape[0],
            width=source.shape[1],
            steps=wanted.steps,
            source_timestep=self.settings.flow.source_timestep,
            guidance=wanted.guidance,
        )
        return to_pictures(pixels)[0]

    @contextmanager
    def _pool(self, name: str) -> Iterator[None]:
        """Use a pool: as of a stage, whole, or none."""
        if name == NO_EXPERTS:
            with self._weave.disabled():
                yield
            return
        stage = self.finished[-1] if name == FULL_POOL else name
        self.run.pool(stage)  # says so where it is not finished
        if not self.settings.pool.train_veteran_gates:
            with self._weave.as_of(stage):
                yield
            return
        # Their routers were trained on, so the pool of an earlier stage is in that stage's folder only.
        if stage != self._held:
            self._weave.eject()
            self._weave, self._held = load_stage(self._model, self.run.pool(stage), stage), stage
        yield
