"""Reading a run folder: what is finished, what was logged, and clear words about what is wrong."""

import json
import shlex
from pathlib import Path

import pytest

from recipes.cologen import train
from recipes.cologen.config.run import load_config
from recipes.cologen.errors import RunFolderError
from recipes.cologen.runs.reader import RunReader
from recipes.cologen.stages import UnknownStageError, select_stages
from tests.recipes.cologen.conftest import run

__all__ = ["run"]  # the finished run of the root conftest, not one that trains


def test_a_stage_is_finished_when_its_checkpoint_is_whole(run: Path) -> None:
    assert RunReader(run).finished_stages() == ("inpainting", "grounding", "control")
    (run / "checkpoints" / "control" / "stage.json").unlink()
    assert RunReader(run).finished_stages() == ("inpainting", "grounding")
    with pytest.raises(
        RunFolderError, match=r"'control'.*not finished \(finished: inpainting, grounding\).*--stage"
    ):
        RunReader(run).pool("control")
    with pytest.raises(UnknownStageError, match=r"contrl.*Did you mean 'control'"):
        RunReader(run).pool("contrl")


def test_the_command_that_it_advises_is_one_that_train_reads(run: Path) -> None:
    with pytest.raises(RunFolderError) as failure:
        RunReader(run).pool("editing")
    _, found, command = str(failure.value).partition("python -m recipes.cologen.train ")
    asked = train.parser().parse_args(shlex.split(command))
    assert found and (asked.config, asked.output) == (str(run / "config.yaml"), run)
    config = load_config(asked.config)
    # Train refuses a stage whose forerunners are missing; finished ones are skipped.
    assert select_stages(asked.stage, config.stage_names)[-1] == "editing"
    assert select_stages(asked.stage, config.stage_names)[0] == config.stage_names[0]


def test_rows_come_in_order_and_each_step_once(run: Path) -> None:
    reader = RunReader(run)
    rows = reader.train_rows()
    assert [row.stage for row in rows] == ["inpainting"] * 4 + ["grounding"] * 4 + ["control"] * 4
    again = {**rows[0].model_dump(), "loss": 9.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert [row.loss for row in reader.train_rows()] == [9.0, *(row.loss for row in rows[1:])]
    assert [row.scores for row in reader.validation_rows()] == [
        {"inpainting": 0.5},
        {"grounding": 0.6},
        {"control": 0.7},
    ]


def test_a_torn_last_line_is_dropped_and_a_torn_line_before_is_named(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    rows = RunReader(run).train_rows()
    metrics.write_text(metrics.read_text() + '{"kind": "train", "sta')
    assert RunReader(run).train_rows() == rows
    metrics.write_text(metrics.read_text() + '\n{"kind": "note"}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 16: not JSON"):
        RunReader(run).train_rows()


def test_a_row_of_another_form_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"kind": "train", "stage": "control"}\n')
    with pytest.raises(RunFolderError, match=r"line 1: not a train row"):
        RunReader(run).train_rows()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.yaml\. Give the folder that training wrote\.$"):
        RunReader(tmp_path)  # no advice to train into a folder that is something else
    with pytest.raises(RunFolderError, match=r"no such folder.*recipes\.cologen\.train"):
        RunReader(tmp_path / "gone")


def test_what_is_inside_a_run_leads_to_the_run(run: Path) -> None:
    for inside in ("checkpoints", "checkpoints/control", "checkpoints/control/gone"):
        with pytest.raises(RunFolderError, match=f"a part of one. Did you mean {run}\\?"):
            RunReader(run / inside)
    with pytest.raises(RunFolderError, match="it is a file"):
        RunReader(run / "config.yaml")


def test_a_run_without_logs_has_no_rows(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert RunReader(run).train_rows() == [] and RunReader(run).validation_rows() == []
