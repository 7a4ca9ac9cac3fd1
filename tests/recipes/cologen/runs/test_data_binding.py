"""A run goes on when its data and annotators lie elsewhere, and not when they hold something else."""

import io
import json
import shutil

import pytest
import yaml
from rich.console import Console

from recipes.cologen.runs import data_binding
from recipes.cologen.runs.config_changes import DifferentConfigError
from recipes.cologen.runs.data_binding import MAPS, PICTURES
from recipes.cologen.training.run import train
from tests.recipes.cologen.annotator_folders import save_depth_anything
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import (
    STAGES,
    WRITERS,
    arrow_cache,
    config,
    write_folder,
)

__all__ = ["arrow_cache"]


def pool_of(run):
    return (run / "checkpoints/editing/prw/adapter_model.safetensors").read_bytes()


@pytest.fixture
def moved(base_path, tmp_path):
    """Write a set of some kind in one place; give its config there, and in another where a copy lies."""

    def place(kind):
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        path = WRITERS[kind](first)
        shutil.copytree(first, second)
        return config(base_path, path), config(base_path, path.replace(str(first), str(second))), second

    return place


@pytest.mark.parametrize("kind", WRITERS)
def test_a_set_may_move_and_the_run_ends_as_if_it_had_not(kind, moved, tmp_path, run, stop_at):
    here, there, _ = moved(kind)
    assert run(here, tmp_path / "through").complete
    stop_at(3)  # in the second stage
    assert run(here, tmp_path / "halted").stopped.step == 1
    shutil.rmtree(tmp_path / "first")
    assert run(there, tmp_path / "halted").complete
    assert pool_of(tmp_path / "halted") == pool_of(tmp_path / "through")


def changed_text(rows):
    rows[3]["text"] = "blue circle on tan"


def changed_order(rows):
    rows.reverse()


def another_row(rows):
    rows.append(rows[0])


def another_object(rows):
    rows[0]["objects"][0]["label"] = "red square"


@pytest.mark.parametrize("change", [changed_text, changed_order, another_row, another_object])
def test_a_set_that_holds_something_else_is_refused_and_nothing_is_written(change, moved, tmp_path, run):
    here, there, place = moved("folder")
    run(here, tmp_path / "run", "inpainting")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "ledger.json")}
    rows = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    change(rows)
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DifferentConfigError, match=r"data\.sets\.mine: \w+ there, \w+ now"):
        run(there, tmp_path / "run", "control")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_a_run_that_does_not_know_its_data_is_bound_by_its_place(moved, tmp_path, run):
    here, there, _ = moved("folder")
    run(here, tmp_path / "run", "inpainting")
    ledger = tmp_path / "run/ledger.json"
    older = {key: value for key, value in json.loads(ledger.read_text()).items() if key != "data"}
    ledger.write_text(json.dumps(older))
    with pytest.raises(DifferentConfigError, match=r"data\.sets\.mine\.path"):
        run(there, tmp_path / "run", "control")
    assert run(here, tmp_path / "run", "control").trained == ("control",)
    assert run(there, tmp_path / "run", "editing").trained == ("editing",)


@pytest.mark.parametrize("restart", [None, "control"])
def test_a_run_that_began_with_other_maps_says_so_once(restart, moved, tmp_path, run):
    here, *_ = moved("folder")
    run(here, tmp_path / "run", "inpainting..control")
    ledger = json.loads((tmp_path / "run/ledger.json").read_text())
    data = {key: value for key, value in ledger["data"].items() if key not in (MAPS, PICTURES)}
    (tmp_path / "run/ledger.json").write_text(json.dumps({**ledger, "data": data}))
    said = io.StringIO()
    train(here, tmp_path / "run", "all", Console(file=said), restart=restart)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    assert [line.split("--restart ")[1] for line in lines] == (
        ["control", "inpainting"] if restart is None else ["inpainting"]
    )
    assert "line art is white on black" in lines[0] or restart
    again = io.StringIO()
    train(here, tmp_path / "run", "all", Console(file=again), restart="editing")
    assert "warning" not in again.getvalue()


def test_a_run_is_refused_where_maps_are_drawn_in_another_form_than_it_says(
    moved, tmp_path, run, monkeypatch
):
    here, *_ = moved("folder")
    run(here, tmp_path / "run", "inpainting")
    monkeypatch.setitem(data_binding._FORMS, MAPS, "form 3")
    assert run(here, tmp_path / "run", "control").trained == ("control",)
    monkeypatch.setitem(data_binding._FORMS, MAPS, "form 4")
    with pytest.raises(DifferentConfigError, match=r"data\.maps: form 3 there, form 4 now"):
        run(here, tmp_path / "run", "editing")


def test_what_only_later_stages_read_may_still_change(base_path, tmp_path, run):
    paths = {}
    for name in ("early", "late"):
        (tmp_path / name).mkdir()
        paths[name] = write_folder(tmp_path / name)
    sets = [
        f"data.sets.late.{setting}" for setting in ("layout=own", f"path={paths['late']}", "tasks=[editing]")
    ]
    asked = config(base_path, paths["early"], "data.sets.mine.tasks=[inpainting,control]", *sets)
    run(asked, tmp_path / "run", "inpainting")
    lines = (tmp_path / "late/metadata.jsonl").read_text().splitlines()
    (tmp_path / "late/metadata.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert run(asked, tmp_path / "run").complete


def test_a_folder_as_the_source_may_move_too(base_path, tmp_path, run):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name)

    def asked(name):
        stages = "stages=" + json.dumps(STAGES)
        return make_config(base_path, stages, f"data.source=folder:{tmp_path / name}", "validation.samples=0")

    run(asked("first"), tmp_path / "run", "inpainting")
    assert run(asked("second"), tmp_path / "run", "control").trained == ("control",)
    lines = (tmp_path / "second/metadata.jsonl").read_text().splitlines()
    (tmp_path / "second/metadata.jsonl").write_text("\n".join(lines[:5]) + "\n")
    with pytest.raises(DifferentConfigError, match=r"data\.source: "):
        run(asked("second"), tmp_path / "run", "editing")
    with pytest.raises(DifferentConfigError, match=r"data\.source: 'folder:.*' there, 'world' now"):
        run(make_config(base_path, "stages=" + json.dumps(STAGES)), tmp_path / "run", "editing")


def test_an_annotator_may_move_but_not_be_another(base_path, tmp_path, run):
    (tmp_path / "data").mkdir()
    path = write_folder(tmp_path / "data")
    save_depth_anything(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    save_depth_anything(tmp_path / "other")
    weights = tmp_path / "other/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\x3f")

    def asked(name):
        depth = f"data.annotators.depth={{kind: transformers, path: {tmp_path / name}}}"
        return config(base_path, path, depth, "stages.editing.replay={control: 0.5}", "data.size=[16,24]")

    run(asked("one"), tmp_path / "run", "inpainting..control")
    with pytest.raises(DifferentConfigError, match=r"data\.annotators\.depth: \w+ there"):
        run(asked("other"), tmp_path / "run")
    assert run(asked("two"), tmp_path / "run").complete


def test_the_lists_of_sizes_may_lie_anywhere(base_path, tmp_path, run):
    (tmp_path / "data").mkdir()
    path = write_folder(tmp_path / "data")

    def asked(name):
        return config(
            base_path, path, "data.buckets.sizes=[[16,24]]", f"data.buckets.index={tmp_path / name}"
        )

    assert asked("one").fingerprint() == asked("two").fingerprint()
    run(asked("one"), tmp_path / "run", "inpainting")
    assert run(asked("two"), tmp_path / "run", "control").trained == ("control",)
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert stored["data"]["buckets"]["index"] == str(tmp_path / "two")
