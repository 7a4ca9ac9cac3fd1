"""Long prompts are cut or refused by where they come from: held-out data has a rule of its own."""

import json

import pytest

from recipes.cologen import doctor
from recipes.cologen.errors import FolderDataError
from recipes.cologen.report.cells import open_scorer
from recipes.cologen.training.validation import schedule as validating
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.input.test_long_prompts import LONG, spelling
from tests.recipes.cologen.training.test_on_files import STAGES, arrow_cache, write_folder

__all__ = ["arrow_cache", "spelling"]

SETS = ["data.held_out=sets", "data.held_out_sets.other.layout=own", "data.held_out_sets.other.path=folder:y"]


def test_each_source_of_data_has_its_own_rule():
    folder = ["data.source=folder:x"]
    sets = ["data.source=sets", "data.sets.mine.layout=own", "data.sets.mine.path=folder:x"]
    for source, held_out, rules in (
        (folder, SETS, ("refuse", "truncate")),
        (folder, ["data.held_out=folder:y"], ("refuse", "refuse")),
        (sets, ["data.held_out=folder:y"], ("truncate", "refuse")),
        (sets, SETS, ("truncate", "truncate")),
        (sets, [], ("truncate", "refuse")),
    ):
        config = make_config("x", *source, *held_out)
        assert (config.long_prompts, config.held_out_long_prompts) == rules
        for rule in ("truncate", "refuse"):
            config = make_config("x", *source, *held_out, f"base.long_prompts={rule}")
            assert (config.long_prompts, config.held_out_long_prompts) == (rule, rule)


@pytest.fixture
def asked(spelling, tmp_path):
    """A run whose held-out pictures have long captions, in a folder or as a set."""
    for name in ("seen", "held"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "held/metadata.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "text": 3 * LONG}) + "\n" for line in lines)
    (tmp_path / "held/metadata.jsonl").write_text(text)

    def settings(held_out, source, *overrides):
        places = {"source": (source, "seen", "sets"), "held_out": (held_out, "held", "held_out_sets")}
        given = []
        for key, (kind, folder, group) in places.items():
            if kind == "folder":
                given.append(f"data.{key}=folder:{tmp_path / folder}")
            else:
                given += [f"data.{key}=sets", f"data.{group}.own.layout=own"]
                given.append(f"data.{group}.own.path=folder:{tmp_path / folder}")
        short = [
            "stages=" + json.dumps({"inpainting": {**STAGES["inpainting"], "steps": 1}}),
            "dropout.text=0",
        ]
        return make_config(
            spelling, *short, "base.max_text_tokens=40", "data.size=[16,32]", "validation.samples=1",
            "report.samples=1", *given, *overrides,
        )  # fmt: skip

    return settings


def test_held_out_sets_are_cut_where_a_folder_is_trained_on(asked, tmp_path, run, monkeypatch):
    rules = []
    original = validating.evaluate_task

    def watching(model, *arguments, **options):
        rules.append(model.long_prompts)
        return original(model, *arguments, **options)

    monkeypatch.setattr(validating, "evaluate_task", watching)
    assert run(asked("sets", "folder"), tmp_path / "run").complete
    assert rules == ["truncate"]
    assert open_scorer(tmp_path / "run").model.long_prompts == "truncate"


def test_a_held_out_folder_is_refused_before_the_first_step_where_sets_are_trained_on(
    asked, tmp_path, run, at_step, capsys
):
    config = asked("folder", "sets")
    at_step(1, lambda: pytest.fail("a step was taken"))
    with pytest.raises(FolderDataError, match=r"held out(.|\n)*inpainting: (.|\n)*at most 40 are read"):
        run(config, tmp_path / "run")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    answer = ["--json", str(tmp_path / "answer.json"), "--output", str(tmp_path / "run")]
    assert doctor.main(["--config", str(tmp_path / "run.yaml"), *answer]) == 1
    assert "held out cannot be validated on" in capsys.readouterr().out.replace("\n", " ")
    cut = asked("folder", "sets", "base.long_prompts=truncate")
    assert (
        doctor.main(["--config", str(tmp_path / "run.yaml"), "--set", "base.long_prompts=truncate", *answer])
        == 0
    )
    at_step(1, lambda: None)
    assert cut.held_out_long_prompts == "truncate"
