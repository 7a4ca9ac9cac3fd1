"""A picture's settings as a file, its input pictures inside; `generate --settings` reads it.

    python -m recipes.cologen.generate --settings picture.json --output out.png

The page (app/) hands these files out. A file holds no paths to pictures: they travel inside it, as PNG.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import functools
import io
import json
import re
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

from PIL import Image as PilImage
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from recipes.cologen.cli import refuse
from recipes.cologen.config.errors import fault_lines
from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError, PictureError
from recipes.cologen.runs.files import CONFIG
from recipes.cologen.stages import COLOGEN_STAGES

FULL_POOL = "full-pool"
"""The pool as the last stage left it, its router free to choose."""
NO_EXPERTS = "no-experts"
"""The base alone."""
OPTION = "--settings"
MOST_SIDE = 8192
"""Pixels a side of a picture, at most."""
_SIZE = re.compile(r"(\d{1,4})x(\d{1,4})", re.ASCII)
MOST_STEPS = 1000
"""Sampling steps of one picture; the schedule knows no more times, and the memory for them would not end."""
AXIS_OPTIONS = {
    "seed": ("--seed",),
    "steps": ("--steps",),
    "guidance": ("--guidance",),
    "pool": ("--as-of", "--experts-off"),
}
"""Settings that a sheet (`--grid`) may vary, and the options that say them for one picture."""


def check_size(text: str) -> str:
    """Refuse what is no size.

    Raises:
        PydanticCustomError: Says what is expected.
    """
    found = _SIZE.fullmatch(text)
    if found is None or not all(0 < int(length) <= MOST_SIDE for length in found.groups()):
        raise PydanticCustomError(
            "picture_size", f"expected WIDTHxHEIGHT of at most {MOST_SIDE} pixels a side, such as 640x480"
        )
    return text


def height_and_width(size: str) -> tuple[int, int]:
    """The height and width of a size, WIDTHxHEIGHT."""
    width, height = size.split("x")
    return int(height), int(width)


PictureSize = Annotated[str, AfterValidator(check_size)]
"""WIDTHxHEIGHT in pixels."""


class Command(Protocol):
    """The `main` of a command."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run with these arguments, or those of the process, and return the exit status."""


class PictureSettings(BaseModel):
    """The settings of one picture; its input pictures come beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["inpainting", "grounding", "control", "customization", "editing"]
    """What is asked of the source."""
    prompt: str
    """Words for the base."""
    pool: str
    """Name of the stage whose pool and router generate, `full-pool`, or `no-experts`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the starting noise."""
    steps: int = Field(gt=0, le=MOST_STEPS)
    """Sampling steps."""
    guidance: float | None = Field(default=None, allow_inf_nan=False)
    """Scale for a guidance-distilled base; None for others."""
    size: PictureSize | None = None
    """Width and height to generate at; None: those of training, else the source's."""

    def arguments(self, but: Collection[str] = ()) -> list[str]:
        """The same as options of `generate`, but for some settings."""
        options = {
            "seed": ["--seed", str(self.seed)],
            "steps": ["--steps", str(self.steps)],
            "pool": ["--experts-off"] if self.pool == NO_EXPERTS else ["--as-of", self.pool],
            "guidance": [] if self.guidance is None else [f"--guidance={self.guidance!r}"],
        }
        said = [word for name, words in options.items() if name not in but for word in words]
        size = [] if self.size is None else ["--size", self.size]
        return ["--task", self.task, f"--prompt={self.prompt}", *said, *size]


class SettingsFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cologen picture"] = "cologen picture"
    """What this file is."""
    how: str = "python -m recipes.cologen.generate --settings THIS_FILE --output out.png"
    """How the picture is generated again."""
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
        raise PictureError(
            f"{OPTION} {path} is not a picture's settings: {fault_lines(error, SettingsFile)[0]}. Take "
            "the file that the page's download button gives."
        ) from error


def reads_settings(command: Command) -> Command:
    """Let a command take `--settings FILE` for the options that the file holds; others given win."""

    @functools.wraps(command)
    def main(arguments: Sequence[str] | None = None) -> int:
        given = split_at(OPTION, sys.argv[1:] if arguments is None else arguments)
        if OPTION not in given[:-1]:
            return command(given)
        place = given.index(OPTION)
        others = [*given[:place], *given[place + 2 :]]
        with tempfile.TemporaryDirectory(prefix="cologen-") as folder:
            try:
                file = Path(given[place + 1])
                plain = _unpacked(read_settings(file), Path(folder), others, file)
            except CologenError as error:
                return refuse(error)
            # The option stays, so that messages can name the file, and not where its pictures were put.
            return command([*plain, *others, OPTION, str(file)])

    return main


def split_at(option: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--option=VALUE` in two words."""
    start = f"{option}="
    split = ([option, word.removeprefix(start)] if word.startswith(start) else [word] for word in arguments)
    return [word for words in split for word in words]


def _unpacked(held: SettingsFile, folder: Path, others: Sequence[str], file: Path) -> list[str]:
    """The options that a file stands for, its pictures written into a folder.

    Left out is what the other options say instead, and what a sheet among them varies.
    """
    known = (*COLOGEN_STAGES, FULL_POOL, NO_EXPERTS)
    if held.settings.pool not in known:
        raise PictureError(
            f"{OPTION} {file} names the pool {held.settings.pool!r}; expected one of {', '.join(known)}."
        )
    said = {word.removeprefix("--grid=").partition("=")[0] for word in others}
    sheet = any(word.startswith("--grid") for word in others)
    but = {name for name, options in AXIS_OPTIONS.items() if said & set(options) or (sheet and name in said)}
    arguments = ["--checkpoint", held.checkpoint, "--of-run", held.run, *held.settings.arguments(but)]
    for option, encoded in held.pictures.items():
        if f"--{option}" in said:
            continue
        path = folder / f"{option}.png"
        try:
            path.write_bytes(base64.b64decode(encoded, validate=True))
        except binascii.Error as error:
            raise PictureError(
                f"the {option} in {file} is not base64 ({error}); the file is damaged, take it again."
            ) from error
        arguments += [f"--{option}", str(path), "--held", option]
    return arguments


def same_run(fingerprint: str, wanted: str | None, run: Path, settings: str | None = None) -> None:
    """Refuse to draw a picture of one run with another.

    Args:
        fingerprint: Of the settings of the run that is to generate.
        wanted: What it should be; None for any.
        run: The run's folder.
        settings: The file of settings that says so, if one does.

    Raises:
        PictureError: The fingerprints differ.
    """
    if wanted is None or wanted == fingerprint:
        return
    whose = "--of-run asks for" if settings is None else f"{settings} is of a picture of"
    raise PictureError(
        f"{whose} the run {wanted}, but {run} is the run {fingerprint} (the fingerprint of its config.yaml; "
        "ledger.json may hold another, of the version that began the run): another picture would come out. "
        f"Give that run's folder with --checkpoint, or --of-run {fingerprint} to use this one all the same."
    )


def same_config(settings: RunConfig, config: str | None, run: Path) -> None:
    """Refuse a run that was trained by another config than the one that was named.

    Raises:
        ConfigError: There is no such config.
        PictureError: What a run learns differs between the two.
    """
    if config is None or load_config(config).fingerprint() == settings.fingerprint():
        return
    raise PictureError(
        f"{run} was not trained by --config {config}: their settings differ (the run's are in "
        f"{run / CONFIG}). Leave --config out; a picture is generated by the run's own settings."
    )


def wanted_by(
    args: argparse.Namespace, steps: int, changed: Mapping[str, str] | None = None
) -> PictureSettings:
    """The options of `generate` as settings of a picture.

    Args:
        args: The options.
        steps: Where none are asked for.
        changed: What a cell of a sheet changes.

    Raises:
        PictureError: A value will not do.
    """
    changed = changed or {}
    values = {
        "task": args.task,
        "prompt": args.prompt,
        "pool": NO_EXPERTS if args.experts_off else args.as_of or args.task,
        "seed": args.seed or 0,
        "steps": args.steps or steps,
        "guidance": args.guidance,
        "size": args.size,
    }
    try:
        return PictureSettings.model_validate({**values, **changed})
    except ValidationError as error:
        fault = fault_lines(error, PictureSettings)[0]
        option = "--grid " if fault.partition(":")[0] in changed else "--"
        raise PictureError(f"{option}{fault}.") from error


def called(args: argparse.Namespace, option: str) -> str:
    """What messages call the picture of an option: its path, or the file of settings that holds it."""
    if option in (args.held or ()):
        return f"the {option} in {args.settings}"
    return str(getattr(args, option))
