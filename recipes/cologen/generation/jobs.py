"""Reads a file of jobs, a line of JSON for each picture; all faults are reported together."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from recipes.cologen.config.errors import fault_lines
from recipes.cologen.errors import PictureError

MOST_SAID = 20
"""Faults of one file that are said."""


def _names_a_file(name: str) -> str:
    """Refuse a name that cannot be a file's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("expected letters, digits and . _ -, a letter or digit or _ first (it names a file)")
    return name


class Job(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: str
    """What is asked of the source."""
    image: Path
    """The source; relative paths start at the file of jobs."""
    prompt: str
    """Words for the base."""
    name: Annotated[str, AfterValidator(_names_a_file)] | None = None
    """Of the picture, without its ending; the number of the line where it is left out."""
    mask: Path | None = None
    """Inpainting: white where to paint."""
    seed: int = 0
    """Of the starting noise."""
    steps: int | None = None
    """Sampling steps; those of the run where they are left out."""
    guidance: float | None = None
    """For a guidance-distilled base; the run's where it is left out."""
    size: str | None = None
    """Width and height, "640x480"; those of training, else the source's, where it is left out."""
    pool: str | None = None
    """Stage whose pool generates, `full-pool` or `no-experts`; the task's own stage where it is left out."""


def read_jobs(path: Path) -> list[Job]:
    """Read every job before the first is generated.

    Raises:
        PictureError: The file is missing or no text, or lines are no jobs, or two would have one name; names
            the lines.
    """
    if not path.is_file():
        raise PictureError(f"there is no file of jobs {path}; check the path given to --batch.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PictureError(
            f"{path} is not text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it "
            "as UTF-8."
        ) from error
    jobs: dict[int, Job] = {}
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                jobs[number] = _job(line, number)
            except ValueError as error:  # pydantic's and JSON's errors are some, too
                faults += [f"line {number}: {words}" for words in _said(error)]
    faults += _alike(jobs)
    if not jobs and not faults:
        faults = ["there is no job in it"]
    if faults:
        left = [f"and {len(faults) - MOST_SAID} more"] if len(faults) > MOST_SAID else []
        said = "\n  ".join([*faults[:MOST_SAID], *left])
        raise PictureError(f"{path}: {said}\nNothing was generated. Mend the file.")
    return list(jobs.values())


def _job(line: str, number: int) -> Job:
    """Read a line.

    Raises:
        ValueError: It is no job.
    """
    try:
        json.loads(line, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError("not JSON of a job (nested too deeply)") from error
    job = Job.model_validate_json(line)
    return job if job.name else job.model_copy(update={"name": f"{number:05}"})


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, which may have a key twice, of which json and pydantic would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice}: is given twice")
    return found


def _said(error: ValueError) -> list[str]:
    if isinstance(error, ValidationError):
        return fault_lines(error, Job)
    return [f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)]


def _alike(jobs: dict[int, Job]) -> Iterator[str]:
    """Names that are one name, or would be one file on some disks: those that heed no capitals."""
    numbers = defaultdict(list)
    for number, job in jobs.items():
        numbers[unicodedata.normalize("NFC", str(job.name)).casefold()].append(number)
    for lines in numbers.values():
        names = [repr(name) for name in dict.fromkeys(jobs[number].name for number in lines)]
        where = f"lines {', '.join(map(str, lines))}"
        if len(names) > 1:
            yield f"{where}: the names {' and '.join(names)} are one file where capitals do not count"
        elif len(lines) > 1:
            yield f"{where}: the name {names[0]} is given {len(lines)} times"
