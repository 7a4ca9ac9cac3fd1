"""The command: what it says and returns when it is done, stopped, refused, or has nothing left to do."""

import errno
import fcntl
import io
import json
import re
import signal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from recipes.cologen import train as command
from recipes.cologen.config.run import CONFIGS
from recipes.cologen.report.score_table import score_table
from recipes.cologen.training import context as context
from recipes.cologen.training import loop
from tests.recipes.cologen.training.conftest import base_path, make_config

__all__ = ["base_path"]


SCORES = {
    "experts_off": {"inpainting": 0.125, "control": 0.25},
    "after_own_stage": {"inpainting": 0.5},
    "final_as_of": {"inpainting": 0.375},
    "final_full_pool": {"inpainting": 0.0},
    "n": 77,
}


@pytest.fixture
def config_file(base_path, tmp_path):
    file = tmp_path / "test.yaml"
    file.write_text(make_config(base_path, "stages.*.steps=2").to_yaml())
    return file


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command with a stand-in for the report; give its status and what it printed."""
    reports = []

    def report(folder, announce):
        page = folder / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text("page")
        (page.parent / "scores.json").write_text(json.dumps(SCORES))
        reports.append(folder)
        return page

    monkeypatch.setattr(command, "build_report", report)

    def run(*arguments):
        stream = io.StringIO()
        console = Console(file=stream, width=200)
        status = command.main(["--output", str(tmp_path / "run"), *map(str, arguments)], console)
        return status, stream.getvalue(), len(reports)

    return run


def test_all_stages_then_the_report_then_nothing_left(call, config_file, tmp_path):
    status, text, reports = call("--config", config_file)
    assert (status, reports) == (0, 1)
    assert f"all is done; the report is {tmp_path / 'run/report/index.html'}" in text
    assert not list((tmp_path / "run").glob(".*"))
    status, text, reports = call("--config", config_file, "--resume")
    assert (status, reports) == (0, 1)
    assert "finished already: inpainting, grounding, control" in text
    assert "all is done; the report is" in text


def test_the_scores_are_shown_at_the_end_and_again_when_all_is_done(call, config_file):
    for _ in range(2):
        lines = call("--config", config_file)[1].splitlines()
        assert any("scores on 77 held-out examples" in line for line in lines)
        row = next(line for line in lines if "inpainting" in line and "0.125" in line)
        assert re.findall(r"\d\.\d+", row) == ["0.125", "0.500", "0.375", "0.000"]
        assert "the report is" in lines[-1]


def test_no_scores_are_shown_of_a_run_without_them(tmp_path):
    assert score_table(tmp_path / "scores.json") is None


def test_a_folder_that_another_command_writes_is_left_alone(call, config_file, tmp_path, monkeypatch, capsys):
    call("--config", config_file, "--stage", "inpainting")
    before = sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file()
    )

    def taken(handle, how):
        if how & fcntl.LOCK_EX:
            raise BlockingIOError(errno.EAGAIN, "taken")

    monkeypatch.setattr(fcntl, "flock", taken)
    (tmp_path / "run/.lock").write_text("4711 on here")
    assert call("--config", config_file)[0] == 1
    assert "another command is working" in (said := capsys.readouterr().err) and "4711 on here" in said
    (tmp_path / "run/.lock").unlink()
    after = sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    assert after == before


def test_a_full_disk_is_said_in_a_line_and_the_run_goes_on_later(call, config_file, monkeypatch, capsys):
    call("--config", config_file, "--stage", "inpainting")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(context, "write_state", full)
        patch.setattr(context.RunFolder, "finish", full)
        assert call("--config", config_file)[0] == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*No space left.* its last checkpoint too: .*\n", said)
    assert call("--config", config_file)[0] == 0


def test_one_stage_says_that_others_are_left(call, config_file):
    status, text, reports = call("--config", config_file, "--stage", "inpainting")
    assert (status, reports) == (0, 0)
    assert "done: inpainting; the other stages are still to be trained" in text


def test_a_report_with_other_settings_is_built_again(call, config_file):
    call("--config", config_file)
    assert call("--config", config_file, "--set", "report.samples=3")[2] == 2


def test_restarting_a_stage_trains_it_and_what_follows(call, config_file):
    call("--config", config_file)
    changed = ["--set", "stages.grounding.lr=0.5", "--restart", "grounding"]
    status, text, reports = call("--config", config_file, *changed)
    assert (status, reports) == (0, 2)
    assert "finished already: inpainting\n" in text
    assert "stage control is finished" in text


def test_stopping_saves_and_says_how_to_go_on(call, config_file, monkeypatch):
    original = loop.train_step

    def stopping(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(loop, "train_step", stopping)
    status, text, _ = call("--config", config_file)
    assert status == command.STOPPED == 130
    assert "stopped in stage inpainting after step 1 and saved; run the same command to go on" in text
    monkeypatch.setattr(loop, "train_step", original)
    status, text, _ = call("--config", config_file)
    assert status == 0
    assert "going on after step 1" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "tinny"], "there is no config 'tinny'"),
        (["--config", "tiny", "--stage", "controll"], "Did you mean 'control'"),
        (["--config", "tiny", "--restart", "controll"], "Did you mean 'control'"),
        (["--config", "tiny", "--set", "pool.rnk=3"], "Did you mean pool.rank"),
        (["--config", "tiny", "--set", "base.path=absent"], "no FLUX base"),
        (["--config", "tiny", "--data", "photos"], "expected 'world' or 'folder:PATH'"),
        (["--config", "tiny", "--data", ""], "expected 'world' or 'folder:PATH'"),
        (["--config", "tiny", "--data", "folder:/my pics #2: a"], "/my pics #2: a is not a folder"),
        (["--config", "tiny", "--restart", "control"], "neither finished nor begun"),
        (["--config", "tiny", "--output", "/dev/null/run"], "cannot be the folder of a run: Not a directory"),
    ],
)
def test_what_is_refused_is_said_in_a_line_and_leaves_no_folder(call, capsys, tmp_path, arguments, message):
    assert call(*arguments)[0] == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def photos(tmp_path):
    """A folder of three pictures, each with a masked object; it has a space and a mark in its name."""
    photos = tmp_path / "my photos #2"
    photos.mkdir()
    lines = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
        mask = np.zeros((24, 24), np.uint8)
        mask[8:16, 8:16] = 255
        Image.fromarray(mask).save(photos / f"{number}-mask.png")
        objects = [{"label": "red circle", "mask": f"{number}-mask.png"}]
        lines.append(json.dumps({"file_name": f"{number}.png", "text": "red circle", "objects": objects}))
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    return photos


def test_a_folder_of_pictures_is_trained_on(call, config_file, photos):
    data = ["--data", f"folder:{photos}", "--set", "data.size=[16,16]"]
    status, text, _ = call("--config", config_file, "--stage", "inpainting", *data)
    assert status == 0, text
    assert "score" not in text


def test_a_stage_that_the_pictures_cannot_teach_is_found_before_the_first_step(
    call, config_file, photos, capsys, tmp_path
):
    metadata = photos / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    del lines[1]["objects"]
    lines[2]["text"] = "crimson circle"
    metadata.write_text("\n".join(map(json.dumps, lines)))
    data = ["--data", f"folder:{photos}", "--set", "data.size=[16,16]", "--stage", "inpainting..grounding"]
    assert call("--config", config_file, *data)[0] == 1
    said = capsys.readouterr().err
    assert re.search(r"inpainting, 1\.png#2: inpainting needs objects", said)
    assert re.search(r"inpainting, 2\.png#3: the base cannot read 'crimson'", said)
    assert re.search(r"grounding, 1\.png#2: grounding needs an object", said)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    metadata.write_text(metadata.read_text().replace("crimson", "red").replace("1.png", "0.png"))
    assert call("--config", config_file, "--stage", "inpainting")[0] == 0  # nothing had begun


def test_the_tiny_config_runs_on_the_base_that_ships_with_it():
    text = (CONFIGS / "tiny.yaml").read_text()
    assert "path: recipes/cologen/assets/tiny_flux" in text
