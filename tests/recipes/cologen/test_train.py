"""The command: what it says and returns when it is done, stopped, refused, or has nothing left to do."""

import io
import json
import signal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from recipes.cologen import train as command
from recipes.cologen.config import CONFIGS
from recipes.cologen.training import loop
from tests.recipes.cologen.training.conftest import base_path, make_config

__all__ = ["base_path"]


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
    status, text, reports = call("--config", config_file, "--resume")
    assert (status, reports) == (0, 1)
    assert "finished already: inpainting, grounding, control" in text
    assert "all is done; the report is" in text


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
    ],
)
def test_what_is_refused_is_said_in_a_line_and_leaves_no_folder(call, capsys, tmp_path, arguments, message):
    assert call(*arguments)[0] == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_pictures_is_trained_on(call, config_file, tmp_path):
    photos = tmp_path / "photos"
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
    data = ["--data", f"folder:{photos}", "--set", "data.size=[16,16]"]
    status, text, _ = call("--config", config_file, "--stage", "inpainting", *data)
    assert status == 0, text
    assert "score" not in text


def test_the_tiny_config_runs_on_the_base_that_ships_with_it():
    text = (CONFIGS / "tiny.yaml").read_text()
    assert "path: recipes/cologen/assets/tiny_flux" in text
