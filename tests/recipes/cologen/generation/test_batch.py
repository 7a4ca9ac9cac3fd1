"""Batches: what the command draws one by one, taken up where they stopped, refused line by line."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.generation import batch as generate_batch
from recipes.cologen.generation.jobs import read_jobs
from recipes.cologen.runs.reader import RunReader

REPOSITORY = Path(__file__).resolve().parents[4]
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
        {**JOBS[0], "name": "f", "steps": 100_000_000},
        {**JOBS[0], "name": "g", "prompt": " "},
        {**JOBS[0], "name": "h", "pool": "all"},
        {**JOBS[0], "name": "i", "guidance": 3.5},
        {**JOBS[0], "name": "j", "image": ""},
    ]
    assert batch(finished_run, folder, *broken, JOBS[1]) == 1
    said = capsys.readouterr().err
    for words in (
        "a: there is no picture",
        "b: the base cannot",
        "c: .*not finished",
        "d: steps: expected more than 0, got 0",
        "e: task: expected 'inpainting', .* or 'editing', got 'painting'",
        "f: steps: expected 1000 or less, got 100000000",
        "g: there is no prompt",
        "h: there is no pool 'all'; expected one of .*no-experts",
        "i: this base reads no guidance scale; leave guidance out",
        "j: .* is a folder, not a picture",
    ):
        assert re.search(f"error: {words}", said), words
    assert "1 of 11 pictures" in said
    assert [path.name for path in (folder / "out").iterdir()] == ["other.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["[]"], "line 1: "),
        (
            [json.dumps(JOBS[0]), json.dumps({**JOBS[0], "sead": 3})],
            "line 2: sead: unknown setting. Did you mean seed?",
        ),
        ([json.dumps({**JOBS[0], "name": "../x"})], "line 1: name: expected letters.*got '../x'"),
        ([json.dumps({**JOBS[0], "name": "x"})] * 2, "lines 1, 2: the name 'x' is given 2 times"),
        (
            [json.dumps({**JOBS[0], "name": name}) for name in ("Red", "blue", "red")],
            "lines 1, 3: the names 'Red' and 'red' are one file where capitals",
        ),
        (['{"seed": 1, "seed": 2, ' + json.dumps(JOBS[0])[1:]], "line 1: seed: is given twice"),
        ([json.dumps({**JOBS[0], "seed": "3"})], "line 1: seed: expected a whole number, got '3'"),
        ([json.dumps({**JOBS[0], "steps": 2.5})], "line 1: steps: expected a whole number, got 2.5"),
        (['{"task": "editing"}'], "line 1: image: missing"),
        ([""], "no job in it"),
    ],
)
def test_a_faulty_file_is_refused_before_anything_is_drawn(
    finished_run: Path, folder: Path, lines: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(finished_run, folder, *lines) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not (folder / "out").exists()


def test_all_faults_of_a_file_are_said_at_once(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(finished_run, folder, "{", JOBS[0], {"task": 3, "sead": 1}, *['{"x": 1}'] * 20) == 1
    said = capsys.readouterr().err
    for words in ("line 1: not JSON", "line 3: task: expected text, got 3", "line 3: sead: ", "and 65 more"):
        assert words in said, words
    assert "line 2" not in said


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_said(
    finished_run: Path, folder: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "jobs.jsonl").write_text(json.dumps({"prompt": "größer"}, ensure_ascii=False), encoding)
    files = ["--batch", str(folder / "jobs.jsonl"), "--output", str(folder / "out")]
    assert main(["--checkpoint", str(finished_run), *files]) == 1
    assert re.search(r"error: .*jobs\.jsonl is not text in UTF-8", capsys.readouterr().err)


def test_a_mark_at_the_files_beginning_and_odd_line_ends_do_no_harm(folder: Path) -> None:
    words = "a\u2028b\x85c"  # no ends of lines in JSON
    text = "\r\n".join(json.dumps({**JOBS[0], "prompt": words}, ensure_ascii=False) for _ in range(2))
    (folder / "jobs.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [job.prompt for job in read_jobs(folder / "jobs.jsonl")] == [words] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "3"], '--seed is said in each job of the file: "seed": 3'),
        (["--as-of=editing"], '--as-of is said in each job of the file: "pool": "editing"'),
        (["--grid", "seed=0..3"], "--grid does not go with --batch"),
    ],
)
def test_options_of_one_picture_are_refused_with_where_they_belong(
    finished_run: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--checkpoint", str(finished_run), "--batch=jobs.jsonl", "--output", "out", *more])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"), [("in.png", "is a file"), ("/proc/x/y", "nothing can be written into /proc")]
)
def test_an_output_that_is_no_folder_is_said_before_the_model_is_loaded(
    finished_run: Path,
    folder: Path,
    output: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generate_batch, "GenerationSession", None)
    (folder / "jobs.jsonl").write_text(json.dumps(JOBS[0]))
    files = ["--batch", str(folder / "jobs.jsonl"), "--output", str(folder / output)]
    assert main(["--checkpoint", str(finished_run), *files]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


def test_what_reading_a_picture_took_is_said(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(folder / "in.png")
    assert batch(finished_run, folder, JOBS[0]) == 0
    said = capsys.readouterr().err
    assert re.search(r"note: 00001: .*in\.png has transparent parts; the model sees them white", said)
    assert "1 of 1 picture is in" in said


def test_the_jobs_of_the_page_can_be_drawn_from_the_repositorys_root(
    finished_run: Path, folder: Path
) -> None:
    page = (REPOSITORY / "docs/recipes/app.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\{.*\}$", page, re.MULTILINE)
    (folder / "docs").symlink_to(REPOSITORY / "docs")
    assert len(lines) == 3 and batch(finished_run, folder, *lines[1:]) == 0
    (folder / "jobs.jsonl").write_text(lines[0])
    assert (folder / read_jobs(folder / "jobs.jsonl")[0].image).is_file()  # editing is not trained here


def test_a_missing_file_is_said(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--batch", "nowhere.jsonl", "--output", "out"]
    assert main(["--checkpoint", str(finished_run), *files]) == 1
    assert "there is no file of jobs nowhere.jsonl" in capsys.readouterr().err


def test_a_job_may_have_a_size_and_one_without_keeps_its_key(finished_run: Path, folder: Path) -> None:
    sized = {**JOBS[0], "name": "sized", "size": "32x16"}
    assert batch(finished_run, folder, JOBS[0], sized) == 0
    assert pixels(folder / "out" / "sized.png").shape == (16, 32, 3)
    settings = RunReader(finished_run).settings
    wanted = {
        "task": "grounding",
        "prompt": WORDS,
        "pool": "grounding",
        "seed": 0,
        "steps": 2,
        "guidance": None,
    }
    state = hashlib.sha256(json.dumps([settings.fingerprint(), wanted]).encode())
    state.update(repr(PICTURE.shape).encode() + PICTURE.tobytes() + b"none")
    with Image.open(folder / "out" / "00001.png") as drawn:  # the key of before there were sizes
        assert drawn.info[generate_batch.KEY] == state.hexdigest()
