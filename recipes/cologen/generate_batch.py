"""Draws many pictures with one run: a line of JSON each, taken up again where it stopped.

    python -m recipes.cologen.generate --checkpoint runs/tiny --batch jobs.jsonl --output pictures/

A line: `{"task": "editing", "image": "in.png", "prompt": "make the red circle blue"}`, and if wanted `name`,
`mask`, `seed`, `steps`, `guidance`, `pool`. Pictures are looked up beside the file of jobs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PilImage
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.data.record import Image
from recipes.cologen.drawing import DrawingRoom
from recipes.cologen.errors import CologenError, PictureError
from recipes.cologen.picture_settings import Command, PictureSettings
from recipes.cologen.pictures import read_picture
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.terminal import silence_loading_bars
from recipes.cologen.training.interruption import STOPPED

OPTION = "--batch"
KEY = "cologen job"
"""Under which a picture's PNG holds the hash of the job that drew it."""


class Job(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    """What is asked of the source."""
    image: Path
    """The source; relative paths start at the file of jobs."""
    prompt: str
    """Words for the base."""
    name: str | None = Field(default=None, pattern=r"^[\w][\w.-]*$")
    """Of the picture, without its ending; the number of the line where it is left out."""
    mask: Path | None = None
    """Inpainting: white where to paint."""
    seed: int = 0
    """Of the starting noise."""
    steps: int | None = None
    """Sampling steps; those of the run where they are left out."""
    guidance: float | None = None
    """For a guidance-distilled base; the run's where it is left out."""
    pool: str | None = None
    """Stage whose pool draws, `full-pool` or `no-experts`; the task's own stage where it is left out."""


class Ready(NamedTuple):
    """A job that can be drawn."""

    name: str
    wanted: PictureSettings
    image: Image
    mask: Image | None
    key: str
    """Changes with anything that the picture depends on, but for the weights."""


def also_batches(command: Command) -> Command:
    """Let a command take `--batch JOBS`, for which the options of one picture are not asked."""

    @functools.wraps(command)
    def main(arguments: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if arguments is None else arguments)
        return draw_batch(given) if OPTION in given else command(given)

    return main


def draw_batch(arguments: Sequence[str]) -> int:
    """Run the batch and return its exit status: 0 all drawn, 1 refused or some not drawn, 130 stopped."""
    asked = _parser().parse_args(arguments)
    silence_loading_bars()
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        jobs = read_jobs(asked.batch)
        room = DrawingRoom(RunReader(asked.checkpoint))
        asked.output.mkdir(parents=True, exist_ok=True)
        failed = _draw_all(room, jobs, asked.batch.parent, asked.output, console)
    except (CologenError, PrwError) as error:
        console.print(f"error: {error}")
        return 1
    except OSError as error:
        console.print(f"error: a file cannot be read or written: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with what is missing")
        return STOPPED
    console.print(f"{len(jobs) - failed} of {len(jobs)} pictures are in {asked.output}")
    return 1 if failed else 0


def read_jobs(path: Path) -> list[Job]:
    """Read every job before the first is drawn.

    Raises:
        PictureError: The file is missing, or a line is no job, or two would have one name; names the line.
    """
    if not path.is_file():
        raise PictureError(f"there is no file of jobs {path}; check the path given to {OPTION}.")
    jobs: list[Job] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            job = Job.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise PictureError(f"{path}, line {number}: {place}: {first['msg']}.") from error
        jobs.append(job if job.name else job.model_copy(update={"name": f"{number:05}"}))
    often = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if often or not jobs:
        what = (
            f"{len(often)} names are given twice, such as {often[0]!r}" if often else "there is no job in it"
        )
        raise PictureError(f"{path}: {what}. Mend the file.")
    return jobs


def _draw_all(room: DrawingRoom, jobs: list[Job], beside: Path, folder: Path, console: Console) -> int:
    """Draw what is not there yet; a job that cannot be drawn is said, and the others go on."""
    failed = 0
    for job in jobs:
        path = folder / f"{job.name}.png"
        try:
            ready = _ready(room, job, beside)
            if not _is_drawn(path, ready.key):
                drawn = room.draw(ready.wanted, ready.image, ready.mask)
                _write(drawn.image, path, ready.key)
                for notice in drawn.notices:
                    console.print(f"note: {job.name}: {notice}")
        except (CologenError, PrwError) as error:
            failed += 1
            console.print(f"error: {job.name}: {error}")
    return failed


def _ready(room: DrawingRoom, job: Job, beside: Path) -> Ready:
    sampling = room.settings.sampling
    guidance = sampling.guidance if job.guidance is None and room.reads_guidance else job.guidance
    values = {
        "task": job.task,
        "prompt": job.prompt,
        "pool": job.task if job.pool is None else job.pool,
        "seed": job.seed,
        "steps": sampling.steps if job.steps is None else job.steps,
        "guidance": guidance,
    }
    try:
        wanted = PictureSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise PictureError(f"{first['loc'][0]}: {first['msg']} (got {first['input']!r}).") from error
    image = read_picture(beside / job.image)
    mask = None if job.mask is None else read_picture(beside / job.mask)
    state = hashlib.sha256(json.dumps([room.settings.fingerprint(), wanted.model_dump()]).encode())
    for picture in (image, mask):
        state.update(b"none" if picture is None else repr(picture.shape).encode() + picture.tobytes())
    return Ready(str(job.name), wanted, image, mask, state.hexdigest())


def _is_drawn(path: Path, key: str) -> bool:
    """Whether a picture is there already.

    Raises:
        PictureError: There is another one of that name.
    """
    if not path.exists():
        return False
    with PilImage.open(path) as opened:
        found = opened.info.get(KEY)
    if found != key:
        raise PictureError(
            f"{path} is there, but was drawn by another job or another run. Remove it, or give another "
            "--output."
        )
    return True


def _write(image: Image, path: Path, key: str) -> None:
    """Write a picture, all or nothing, with the hash of its job."""
    held = PngInfo()
    held.add_text(KEY, key)
    draft = path.with_name(f".{path.name}.part")
    PilImage.fromarray(image).save(draft, "PNG", pnginfo=held)
    draft.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.generate", description="Draw a batch of pictures with a trained run."
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="the folder that training wrote", required=True
    )
    parser.add_argument(
        OPTION, type=Path, metavar="JOBS", help="a line of JSON for each picture", required=True
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where NAME.png go", required=True)
    return parser
