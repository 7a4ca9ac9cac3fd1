"""Batches: what the command draws one by one, taken up where they stopped, refused line by line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recipes.cologen import generate_batch
from recipes.cologen.data.world import World
from recipes.cologen.generate import main

PICTURE = World(3).record(0).image
WORDS = "draw a red box around the blue square"
JOBS: list[dict[str, Any]] = [
    {"task": "grounding", "image": "in.png", "prompt": WORDS},
    {"task": "grounding", "image": "in.png", "prompt": WORDS, "name": "other", "seed": 4, "steps": 3},
    {"task": "inpainting", "image": "in.png", "mask": "hole.png", "prompt": "red circle on gray"},
    {"task": "editing", "image": "in.png", "prompt": "make the red circle blue", "pool": "no-experts"},
]
NAMES = ["00001", "other", "00003", "00004"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures and jobs, in a folder that is not the working one."""
    hole = np.zeros_like(PICTURE)
    hole[2:6, 3:9] = 255
    Image.fromarray(PICTURE).save(tmp_path / "in.png")
    Image.fromarray(hole).save(tmp_path / "hole.png")
    return tmp_path


def batch(run: Path, folder: Path, *jobs: dict[str, Any] | str) -> int:
    lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    files = ["--batch", str(folder / "jobs.jsonl"), "--output", str(folder / "out")]
    return main(["--checkpoint", str(run), *files])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).copy()


def test_a_batch_draws_what_single_commands_draw(finished_run: Path, folder: Path) -> None:
    assert batch(finished_run, folder, *JOBS) == 0
    for name, job in zip(NAMES, JOBS, strict=True):
        pool = job.get("pool", job["task"])
        plain = ["--experts-off"] if pool == "no-experts" else ["--as-of", pool]
        for option in ("image", "mask"):
            plain += [f"--{option}", str(folder / job[option])] if option in job else []
        for option in ("task", "prompt", "seed", "steps"):
            plain += [f"--{option}", str(job[option])] if option in job else []
        one = folder / "one.png"
        assert main(["--checkpoint", str(finished_run), *plain, "--native", "--output", str(one)]) == 0
        assert np.array_equal(pixels(folder / "out" / f"{name}.png"), pixels(one)), name


def test_a_stopped_batch_goes_on_with_what_is_missing(
    finished_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = generate_batch._write, []

    def stop_at_the_third(image: Any, path: Path, key: str) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.stem)
        write(image, path, key)

    monkeypatch.setattr(generate_batch, "_write", stop_at_the_third)
    assert batch(finished_run, folder, *JOBS) == 130
    assert sorted(path.stem for path in (folder / "out").iterdir()) == sorted(NAMES[:2])
    written.clear()
    assert batch(finished_run, folder, *JOBS) == 0 and written == NAMES[2:]
    written.clear()
    assert batch(finished_run, folder, *JOBS) == 0 and written == []


def test_a_changed_job_does_not_pass_for_drawn(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(finished_run, folder, JOBS[0]) == 0
    before = (folder / "out/00001.png").read_bytes()
    for changed in ({"seed": 9}, {"steps": 1}, {"prompt": "cover the blue square with a red mask"}):
        assert batch(finished_run, folder, {**JOBS[0], **changed}) == 1
        assert "drawn by another job" in capsys.readouterr().err
    Image.fromarray(PICTURE[::-1]).save(folder / "in.png")
    assert batch(finished_run, folder, JOBS[0]) == 1
    assert (folder / "out/00001.png").read_bytes() == before


def test_a_job_that_cannot_be_drawn_is_said_and_the_others_are_drawn(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [
        {**JOBS[0], "name": "a", "image": "nowhere.png"},
        {**JOBS[0], "name": "b", "prompt": "make it pop"},
        {**JOBS[3], "name": "c", "pool": "editing"},
        {**JOBS[0], "name": "d", "steps": 0},
        {**JOBS[0], "name": "e", "task": "painting"},
    ]
    assert batch(finished_run, folder, *broken, JOBS[1]) == 1
    said = capsys.readouterr().err
    for words in ("a: there is no picture", "b: the base cannot", "c: .*not finished", "d: steps", "e: task"):
        assert re.search(f"error: {words}", said), words
    assert "1 of 6 pictures" in said
    assert [path.name for path in (folder / "out").iterdir()] == ["other.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: the line: "),
        ([json.dumps(JOBS[0]), json.dumps({**JOBS[0], "sead": 3})], "line 2: sead: "),
        ([json.dumps({**JOBS[0], "name": "../x"})], "line 1: name: "),
        ([json.dumps({**JOBS[0], "name": "x"})] * 2, "given twice, such as 'x'"),
        ([""], "no job in it"),
    ],
)
def test_a_faulty_file_is_refused_before_anything_is_drawn(
    finished_run: Path, folder: Path, lines: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(finished_run, folder, *lines) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not (folder / "out").exists()


def test_a_missing_file_is_said(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--batch", "nowhere.jsonl", "--output", "out"]
    assert main(["--checkpoint", str(finished_run), *files]) == 1
    assert "there is no file of jobs nowhere.jsonl" in capsys.readouterr().err
