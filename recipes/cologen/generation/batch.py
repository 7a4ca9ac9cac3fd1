"""Generates many pictures with one run: a line of JSON each, resumed where it stopped.

    python -m recipes.cologen.generate --checkpoint runs/tiny --batch jobs.jsonl --output pictures/

A line: `{"task": "editing", "image": "in.png", "prompt": "make the red circle blue"}`, and if wanted `name`,
`mask`, `seed`, `steps`, `guidance`, `size`, `pool`. Pictures are looked up beside the file of jobs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PilImage
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from rich.console import Console

from prw.errors import PrwError
from prw.storage.atomic import atomic_file
from recipes.cologen.cli import add_checkpoint_argument, plain_console, silence_loading_bars
from recipes.cologen.config.errors import fault_lines
from recipes.cologen.data.picture_files import check_writable, read_mask, read_source
from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError, PictureError
from recipes.cologen.generation.jobs import Job, read_jobs
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import Command, PictureSettings, split_at
from recipes.cologen.runs.interruption import STOPPED
from recipes.cologen.runs.reader import RunReader

OPTION = "--batch"
OF_A_JOB = {
    "--task": '"task": "editing"',
    "--image": '"image": "in.png"',
    "--prompt": '"prompt": "make the red circle blue"',
    "--mask": '"mask": "hole.png"',
    "--seed": '"seed": 3',
    "--steps": '"steps": 10',
    "--guidance": '"guidance": 3.5',
    "--size": '"size": "640x480"',
    "--as-of": '"pool": "editing"',
    "--experts-off": '"pool": "no-experts"',
}
"""Options of one picture, and how a job says the same."""
KEY = "cologen job"
"""Under which a picture's PNG holds the hash of the job that generated it."""


class Ready(NamedTuple):
    """A job that is ready to be generated."""

    name: str
    wanted: PictureSettings
    image: Image
    mask: Image | None
    key: str
    """Changes with anything that the picture depends on, but for the weights."""
    notices: tuple[str, ...]
    """What reading the pictures took."""


def also_batches(command: Command) -> Command:
    """Let a command take `--batch JOBS`, for which the options of one picture are not asked."""

    @functools.wraps(command)
    def main(arguments: Sequence[str] | None = None) -> int:
        given = split_at(OPTION, sys.argv[1:] if arguments is None else arguments)
        return generate_batch(given) if OPTION in given else command(given)

    return main


def generate_batch(arguments: Sequence[str]) -> int:
    """Run the batch and return its exit status: 0 all done, 1 refused or some failed, 130 stopped."""
    args = _parsed(arguments)
    silence_loading_bars()
    console = plain_console()
    try:
        jobs = read_jobs(args.batch)
        run = RunReader(args.checkpoint)
        _check_folder(args.output)
        session = GenerationSession(run)
        args.output.mkdir(parents=True, exist_ok=True)
        failed = _generate_all(session, jobs, args.batch.parent, args.output, console)
    except (CologenError, PrwError) as error:
        console.print(f"error: {error}")
        return 1
    except OSError as error:
        console.print(f"error: a file cannot be read or written: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with what is missing")
        return STOPPED
    done, pictures = len(jobs) - failed, "picture" if len(jobs) == 1 else "pictures"
    console.print(f"{done} of {len(jobs)} {pictures} {'is' if done == 1 else 'are'} in {args.output}")
    return 1 if failed else 0


def _generate_all(
    session: GenerationSession, jobs: list[Job], beside: Path, folder: Path, console: Console
) -> int:
    """Generate what is not there yet; a job that fails is reported, and the others go on."""
    failed = 0
    for job in jobs:
        path = folder / f"{job.name}.png"
        try:
            ready = _ready(session, job, beside)
            if not _is_drawn(path, ready.key):
                generated = session.generate(ready.wanted, ready.image, ready.mask)
                write_picture_of_job(generated.image, path, ready.key)
                for notice in (*ready.notices, *generated.notices):
                    console.print(f"note: {job.name}: {notice}")
        except (CologenError, PrwError) as error:
            failed += 1
            console.print(f"error: {job.name}: {error}")
    return failed


def _ready(session: GenerationSession, job: Job, beside: Path) -> Ready:
    sampling = session.settings.sampling
    guidance = sampling.guidance if job.guidance is None and session.reads_guidance else job.guidance
    values = {
        "task": job.task,
        "prompt": job.prompt,
        "pool": job.task if job.pool is None else job.pool,
        "seed": job.seed,
        "steps": sampling.steps if job.steps is None else job.steps,
        "guidance": guidance,
        "size": job.size,
    }
    try:
        wanted = PictureSettings.model_validate(values)
    except ValidationError as error:
        raise PictureError(f"{fault_lines(error, PictureSettings)[0]}.") from error
    read = [read_source(beside / job.image)] + ([] if job.mask is None else [read_mask(beside / job.mask)])
    image, mask = read[0].image, read[1].image if len(read) > 1 else None
    # Without a size, the key is the one from before jobs had sizes: such a picture is not generated again.
    args = wanted.model_dump(exclude={"size"} if wanted.size is None else None)
    state = hashlib.sha256(json.dumps([session.settings.fingerprint(), args]).encode())
    for picture in (image, mask):
        state.update(b"none" if picture is None else repr(picture.shape).encode() + picture.tobytes())
    notices = tuple(one.notice for one in read if one.notice is not None)
    return Ready(str(job.name), wanted, image, mask, state.hexdigest(), notices)


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
            f"{path} is there, but was generated by another job or another run. Remove it, or give another "
            "--output."
        )
    return True


def write_picture_of_job(image: Image, path: Path, key: str) -> None:
    """Write a picture, all or nothing, with the hash of its job."""
    held = PngInfo()
    held.add_text(KEY, key)
    with atomic_file(path) as draft:
        PilImage.fromarray(image).save(draft, "PNG", pnginfo=held)


def _check_folder(path: Path) -> None:
    """Refuse, before the model is loaded, what cannot be the folder of the pictures."""
    if path.exists() and not path.is_dir():
        raise PictureError(f"--output {path} is a file; a batch is written into a folder, give its name.")
    check_writable(path)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; those of one picture are refused with where they are said in a batch."""
    parser = _parser()
    args, others = parser.parse_known_args(arguments)
    for word in others:
        option = word.partition("=")[0]
        if option in OF_A_JOB:
            parser.error(f"{option} is said in each job of the file: {OF_A_JOB[option]}")
    if others:
        parser.error(f"{others[0]} does not go with {OPTION}; a job knows {', '.join(Job.model_fields)}")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.generate",
        description="Generate a batch of pictures with a trained run.",
        allow_abbrev=False,
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        OPTION, type=Path, metavar="JOBS", help="a line of JSON for each picture", required=True
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where NAME.png go", required=True)
    return parser
