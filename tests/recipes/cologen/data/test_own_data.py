"""`--data`: a folder takes the place of what the config names; the commands of its page run as written."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.files import with_data
from recipes.cologen.config.run import CONFIGS, load_config, parse_config
from recipes.cologen.stages import UnknownStageError
from tests.test_docs import FENCE, python_blocks

PAGE = (Path(__file__).parents[4] / "docs/recipes/own_data.md").read_text(encoding="utf-8")
MINIMAL = {"name": "t", "base": {"path": "x"}}
SETS = {"data": {"source": "sets", "sets": {"mine": {"layout": "own", "path": "folder:x"}}}}


@pytest.mark.parametrize("config", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_a_folder_takes_the_place_of_the_data_of_every_config(config):
    data = load_config(config, with_data([], "folder:/my pictures")).data
    assert data.source == "folder:/my pictures" and data.sets == {}


def test_data_sets_of_the_config_may_still_be_asked_for():
    assert set(parse_config({**MINIMAL, **SETS}, with_data([], "sets")).data.sets) == {"mine"}
    assert set(parse_config({**MINIMAL, **SETS}, with_data([], None)).data.sets) == {"mine"}


def test_a_set_that_is_asked_for_beside_a_folder_is_not_dropped_in_silence():
    asked = ["data.sets.other={layout: own, path: 'folder:y'}"]
    with pytest.raises(ConfigError, match=r"names other, but data\.source is 'folder:x'"):
        parse_config({**MINIMAL, **SETS}, with_data(asked, "folder:x"))


def test_overrides_leave_the_callers_settings_as_they_are():
    given = {**MINIMAL, "data": {"size": [8, 8]}, "stages": {"control": {"steps": 3}}}
    parse_config(given, ["data.seed=5", "stages.control.steps=7", "data.source=folder:x"])
    assert given == {**MINIMAL, "data": {"size": [8, 8]}, "stages": {"control": {"steps": 3}}}


def test_a_place_beside_data_sets_is_refused_with_both_ways_out():
    with pytest.raises(ConfigError) as told:
        parse_config({**MINIMAL, **SETS}, ["data.source=folder:x"])
    message = str(told.value)
    assert "data.sets names mine, but data.source is 'folder:x', which reads none of them" in message
    assert "take the data sets out (--set 'data.sets={}'; --data does it by itself)" in message
    assert "to read the data sets set data.source to 'sets'" in message
    assert "got {" not in message


def test_stages_can_be_left_out_and_the_others_keep_their_settings():
    overrides = ["stages.control.lr=3e-4", "stages=[editing, control]", "stages.*.steps=5"]
    stages = parse_config(MINIMAL, overrides).stages
    assert list(stages) == ["control", "editing"]
    assert stages["control"].lr == 3e-4 and {stage.steps for stage in stages.values()} == {5}
    with pytest.raises(UnknownStageError, match="contrl"):
        parse_config(MINIMAL, ["stages=[contrl]"])
    with pytest.raises(ConfigError, match="stages"):
        parse_config(MINIMAL, ["stages=[]"])


def commands(page):
    """The page's commands, each as the module and its arguments."""
    blocks = [fence["code"] for fence in FENCE.finditer(page) if fence["info"].strip() == "bash"]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python -m recipes.cologen.")]


def test_the_commands_of_the_page_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The Python that makes the pictures, the base and the config.
    made = python_blocks(PAGE[: PAGE.index("## Ask the doctor")])
    exec(compile(made, "own_data.md", "exec"), {"__name__": "__docs__"})
    # A folder of captions alone, as the sentence before the command says, does as well.
    lines = Path("album/metadata.jsonl").read_text().splitlines()
    found = commands(PAGE)
    assert [module for module, *_ in found] == [
        "recipes.cologen.train",
        "recipes.cologen.doctor",
        "recipes.cologen.train",
    ]
    for number, (module, *arguments) in enumerate(found):
        bare = [re.sub(r', "objects".*', "}", line) for line in lines]
        Path("album/metadata.jsonl").write_text("\n".join(bare if number == 0 else lines))
        AcceleratorState._reset_state(reset_partial_state=True)  # each command is a process of its own
        assert import_module(module).main(arguments) == 0, arguments
    assert (tmp_path / "runs/captions/report/index.html").is_file()
    assert (tmp_path / "runs/mine/report/index.html").is_file()
