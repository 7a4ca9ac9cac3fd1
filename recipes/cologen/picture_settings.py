"""A picture's settings as a file: all that drew it, the pictures it was drawn from inside; read by generate.

    python -m recipes.cologen.generate --settings picture.json --output out.png

The page (app/) hands these files out. A file holds no paths to pictures: they travel inside it, as PNG.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image as PilImage
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError, PictureError
from recipes.cologen.stages import COLOGEN_STAGES

FULL_POOL = "full-pool"
"""The pool as the last stage left it, its router free to choose."""
NO_EXPERTS = "no-experts"
"""The base alone."""
OPTION = "--settings"


class Command(Protocol):
    """The `main` of a command."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run with these arguments, or those of the process, and return the exit status."""


class PictureSettings(BaseModel):
    """What one picture was asked for with; the pictures that it is drawn from come beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["inpainting", "grounding", "control", "customization", "editing"]
    """What is asked of the source."""
    prompt: str
    """Words for the base."""
    pool: str
    """Name of the stage whose pool and router draw, `full-pool`, or `no-experts`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the starting noise."""
    steps: int = Field(gt=0)
    """Sampling steps."""
    guidance: float | None = Field(default=None, allow_inf_nan=False)
    """Scale for a guidance-distilled base; None for others."""

    def arguments(self) -> list[str]:
        """The same as options of `generate`."""
        pools = {NO_EXPERTS: ["--experts-off"]}
        more = pools.get(self.pool, ["--as-of", self.pool])
        if self.guidance is not None:
            more.append(f"--guidance={self.guidance!r}")
        return [
            *("--task", self.task, f"--prompt={self.prompt}"),
            *("--seed", str(self.seed), "--steps", str(self.steps), *more),
        ]


class SettingsFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cologen picture"] = "cologen picture"
    """What this file is."""
    how: str = "python -m recipes.cologen.generate --settings THIS_FILE --output out.png"
    """How the picture is drawn again."""
    checkpoint: str
    """The run's folder, as it was named to the page; `--checkpoint` says where it lies now."""
    run: str
    """Fingerprint of the run's settings; another run is refused."""
    settings: PictureSettings
    """What was asked for."""
    image: str
    """The source as it was uploaded, a PNG in base64."""
    mask: str | None = None
    """Inpainting: white where to paint, a PNG in base64."""

    @property
    def pictures(self) -> dict[str, str]:
        """The pictures inside, by the option that takes them."""
        return {"image": self.image} | ({} if self.mask is None else {"mask": self.mask})


def as_png(image: Image) -> str:
    """A picture uint8 [height, width, 3] as a PNG in base64."""
    held = io.BytesIO()
    PilImage.fromarray(image).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode("ascii")


def settings_file(
    settings: PictureSettings, checkpoint: Path, run: str, image: Image, mask: Image | None
) -> str:
    """The text of the file.

    Args:
        settings: What the picture was asked for with.
        checkpoint: The run's folder.
        run: Fingerprint of the run's settings.
        image: The source before it was fitted, uint8 [height, width, 3].
        mask: White where to paint, of the same form; None without.
    """
    held = SettingsFile(
        checkpoint=str(checkpoint),
        run=run,
        settings=settings,
        image=as_png(image),
        mask=None if mask is None else as_png(mask),
    )
    return json.dumps(held.model_dump(), indent=2, ensure_ascii=False) + "\n"


def read_settings(path: Path) -> SettingsFile:
    """Read a file of settings.

    Raises:
        PictureError: It is missing or is something else; says what is wrong where.
    """
    try:
        return SettingsFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PictureError(f"{OPTION} {path} cannot be read ({error}); check the path.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise PictureError(
            f"{OPTION} {path} is not a picture's settings: {place}: {first['msg']}. Take the file that the "
            "page's download button gives."
        ) from error


def reads_settings(command: Command) -> Command:
    """Let a command take `--settings FILE` for the options that the file holds; others given win."""

    @functools.wraps(command)
    def main(arguments: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if arguments is None else arguments)
        if OPTION not in given[:-1]:
            return command(given)
        place = given.index(OPTION)
        with tempfile.TemporaryDirectory(prefix="cologen-") as folder:
            try:
                plain = _unpacked(read_settings(Path(given[place + 1])), Path(folder))
            except CologenError as error:
                Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {error}")
                return 1
            return command([*plain, *given[:place], *given[place + 2 :]])

    return main


def _unpacked(held: SettingsFile, folder: Path) -> list[str]:
    """The options that a file stands for, its pictures written into a folder."""
    known = (*COLOGEN_STAGES, FULL_POOL, NO_EXPERTS)
    if held.settings.pool not in known:
        raise PictureError(f"the settings name the pool {held.settings.pool!r}; expected one of {known}.")
    arguments = ["--checkpoint", held.checkpoint, "--of-run", held.run, *held.settings.arguments()]
    for option, encoded in held.pictures.items():
        path = folder / f"{option}.png"
        try:
            path.write_bytes(base64.b64decode(encoded, validate=True))
        except binascii.Error as error:
            raise PictureError(
                f"the settings' {option} is not base64 ({error}); the file is damaged, take it again."
            ) from error
        arguments += [f"--{option}", str(path)]
    return arguments


def same_run(fingerprint: str, wanted: str | None, run: Path) -> None:
    """Refuse to draw a picture of one run with another.

    Raises:
        PictureError: The fingerprints differ.
    """
    if wanted is not None and wanted != fingerprint:
        raise PictureError(
            f"the settings are of a picture of the run {wanted}, but {run} is the run {fingerprint}: another "
            "picture would come out. Give that run's folder with --checkpoint, or --of-run "
            f"{fingerprint} to draw it with this one all the same."
        )
