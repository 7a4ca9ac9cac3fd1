"""The page of the five tasks: its commands are right, cover every task, and its pictures are there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.data.scene import SIZES
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.generation.options import EXAMPLES, options
from recipes.cologen.runs.reader import RunReader

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs/recipes/tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
START = [".venv/bin/python", "-m", "recipes.cologen.generate"]


def words(block: str) -> list[str]:
    return shlex.split(block.replace("\\\n", " "))


def test_there_is_a_command_and_a_picture_for_every_task() -> None:
    asked = [options().parse_args(words(block)[len(START) :]) for block in BLOCKS]
    assert [one.task for one in asked] == list(VIEWS)
    for one, block in zip(asked, BLOCKS, strict=True):
        assert words(block)[: len(START)] == START
        assert f"](../assets/{one.output.name})" in PAGE
        with Image.open(REPOSITORY / one.output) as drawn:
            assert drawn.size == (256, 256)


@pytest.mark.parametrize("block", BLOCKS, ids=list(VIEWS))
def test_every_command_draws_or_names_the_unfinished_stage(
    block: str,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(REPOSITORY)
    output, arguments = tmp_path / "out.png", words(block)[len(START) :]
    task = options().parse_args(arguments).task
    status = main([*arguments, "--checkpoint", str(finished_run), "--output", str(output), "--steps", "2"])
    if task not in RunReader(finished_run).finished_stages():
        assert status == 1 and f"{task!r}" in capsys.readouterr().err
        return
    assert status == 0
    with Image.open(output) as drawn:
        assert np.asarray(drawn).std() > 0


def test_no_prompt_that_is_offered_gives_a_size_since_no_stage_was_trained_on_one() -> None:
    offered = [options().parse_args(words(block)[len(START) :]).prompt for block in BLOCKS]
    offered += re.findall(r'"([^"]+)"', EXAMPLES)
    trained = [World(0).record(number).caption for number in range(100)]
    for prompt in (*offered, *trained):
        assert not set(SIZES) & set(prompt.split()), prompt
