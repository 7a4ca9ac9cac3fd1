"""The command that scores a run: files written, a table shown, refusals with exit status 1."""

import json
import re
from pathlib import Path

import pytest

from recipes.cologen import evaluate as command
from recipes.cologen.evaluate import main


def test_it_writes_scores_and_tables_and_shows_them(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(finished_run)]) == 0
    scores = json.loads((finished_run / "report" / "scores.json").read_text())
    table = json.loads((finished_run / "report" / "table.json").read_text())
    assert scores["n"] == table["n"] == 5
    assert set(scores["after_own_stage"]) == {"inpainting", "grounding", "control"}
    assert set(table["full_pool"]) == set(table["as_of"]) == {"inpainting", "grounding", "control"}
    assert all(len(row) == 4 for row in table["full_pool"].values())
    assert set(table["forgetting"]["as_of"].values()) == {0.0}
    shown = capsys.readouterr().out
    assert "grounding" in shown and "scores.json" in shown


def test_another_number_of_examples_leaves_the_runs_own_scores_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official = [run / "report" / name for name in ("scores.json", "table.json")]
    run.joinpath("report").mkdir()
    for path in official:
        path.write_text("as measured")
    assert main(["--checkpoint", str(run), "--n", "2"]) == 0
    assert [path.read_text() for path in official] == ["as measured"] * 2
    others = [run / "report" / name for name in ("scores-n2.json", "table-n2.json")]
    assert [json.loads(path.read_text())["n"] for path in others] == [2, 2]
    assert f"written: {others[0]} and table-n2.json" in capsys.readouterr().out


def test_one_stage_is_measured_without_touching_the_files(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(run), "--n", "2", "--stage", "grounding"]) == 0
    shown = capsys.readouterr().out
    assert "grounding" in shown and "inpainting-" not in shown
    assert not (run / "report" / "scores.json").exists()
    assert len(list((run / "report" / "cells").glob("*.json"))) == 4
    assert main(["--checkpoint", str(run), "--n", "2", "--stage", "control"]) == 0  # the last stage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "editing"], "'editing' of .* is not finished"),
        (["--stage", "kontrol"], "Did you mean 'control'"),
        (["--checkpoint", "nowhere"], "nowhere is not a training run"),
    ],
)
def test_it_refuses_with_a_reason(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:

    assert main(["--checkpoint", str(run), *arguments]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped; what was measured is kept"),
        (OSError(28, "No space left"), 1, "error: "),
    ],
)
def test_ctrl_c_and_a_full_disk_end_in_a_line(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
    said: str,
) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(command, "measure_scores", fails)
    assert main(["--checkpoint", str(run)]) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


@pytest.mark.parametrize("n", ["0", "-3", "many"])
def test_a_number_of_examples_that_is_none_is_refused(n: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "runs/tiny", "--n", n])
    assert "--n" in capsys.readouterr().err
