"""What the page answers, in plain Python: reads uploads, generates, and says in words what cannot be done."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from recipes.cologen.app.limits import MOST_SEED, Limits, check_prompt, size_within, whole
from recipes.cologen.app.shares import shares_picture
from recipes.cologen.config.errors import fault_lines
from recipes.cologen.data.picture_files import enlarge
from recipes.cologen.data.record import Image
from recipes.cologen.errors import PictureError
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import PictureSettings, settings_file

SHOWN_PIXELS = 256
"""Pixels that the shorter side of a small picture is enlarged to, as `generate` does."""
A_MAP = "a control map"
"""What is given is the map itself."""


class Request(NamedTuple):
    """What a user filled in; nothing of it is trusted."""

    task: str
    image: Image | None
    mask: Image | None
    prompt: str
    seed: float | None
    steps: float | None
    guidance: float | None
    pool: str
    kind: str = A_MAP
    """Control: what the picture is, a map, or the kind of map to make from it."""
    size: str = ""
    """Width and height to generate at, WIDTHxHEIGHT; empty: those of training, else the picture's own."""


class Answer(NamedTuple):
    """What the user gets."""

    picture: Image
    """Enlarged, as `generate` would write it."""
    shares: Image | None
    """Which expert saw what; None without experts."""
    notes: str
    """What had to be changed to generate it; may be empty."""
    settings: str
    """The text of the settings file."""


class Answers:
    """Answers of one session; keeps nothing between two of them."""

    def __init__(self, session: GenerationSession, limits: Limits) -> None:
        """Answer with this session, within these limits."""
        self.session, self.limits = session, limits

    def preview(self, image: Image | None, kind: str) -> Image | None:
        """The control map that the model would see, enlarged; None without a picture."""
        return (
            None if image is None else shown(self.session.source("control", "", self._map(image, kind)).image)
        )

    def generate(self, request: Request) -> Answer:
        """Generate a picture.

        Raises:
            CologenError: What was asked for cannot be generated; the message is for the user.
        """
        if request.image is None:
            raise PictureError("there is no picture; upload one first.")
        check_prompt(request.prompt, self.limits)
        wanted = self._settings(request)
        image = request.image
        if request.task == "control":
            image = self._map(image, request.kind, wanted.size)
        if request.task == "inpainting" and request.mask is None and not (image == 0).all(-1).any():
            raise PictureError("nothing is painted over; paint over what is to be filled in.")
        kind = None if request.task != "control" or request.kind == A_MAP else request.kind
        generated = self.session.generate(wanted, image, request.mask, kind)
        run = self.session.run
        return Answer(
            picture=shown(generated.image),
            shares=shares_picture(generated.routing, generated.source),
            notes="\n".join(generated.notices),
            settings=settings_file(wanted, run.path, run.settings.fingerprint(), image, request.mask),
        )

    def _map(self, image: Image, kind: str, size: str | None = None) -> Image:
        return image if kind == A_MAP else self.session.made_map(image, kind, size)

    def _settings(self, request: Request) -> PictureSettings:
        pools = self.session.pools(request.task)
        if request.pool not in pools:
            raise PictureError(
                f"there is no pool {request.pool!r} for {request.task}; choose one of {pools}."
            )
        try:
            return PictureSettings.model_validate(
                {
                    "task": request.task,
                    "prompt": request.prompt,
                    "pool": request.pool,
                    "seed": whole("seed", request.seed, 0, MOST_SEED),
                    "steps": whole("number of steps", request.steps, 1, self.limits.steps),
                    "guidance": request.guidance if self.session.reads_guidance else None,
                    "size": size_within(request.size, self.limits),
                }
            )
        except ValidationError as error:
            raise PictureError(f"{fault_lines(error, PictureSettings)[0]}.") from error


def shown(image: Image) -> Image:
    """A picture as the page shows it: a small one enlarged by whole pixels."""
    return np.ascontiguousarray(enlarge(image, max(1, SHOWN_PIXELS // min(image.shape[:2]))))


def joined(layers: list[Image]) -> Image | None:
    """Layers of strokes as one mask, white where to paint; None when nothing is painted."""
    painted = [layer for layer in layers if layer.any()]
    return np.maximum.reduce(painted) if painted else None
