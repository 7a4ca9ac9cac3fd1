"""Held-out records that cannot be used are left out and listed; what none could use is refused first."""

import json
from contextlib import nullcontext

import pytest
import torch

from recipes.cologen.data.opening import training_records
from recipes.cologen.data.record import MissingMetadataError, Record
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World
from recipes.cologen.errors import BrokenPictureError, FolderDataError
from recipes.cologen.runs.loading import load_base
from recipes.cologen.training.input.data_check import check_sources
from recipes.cologen.training.validation import scores as validation
from recipes.cologen.training.validation.scores import held_out_examples
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import write_folder


class Given:
    """Records of the world, some of which lack their objects; `broken` cannot be read at all."""

    def __init__(self, count, bare=(), broken=()):
        self.count, self.bare, self.broken = count, bare, broken

    def __len__(self):
        return self.count

    def record(self, index):
        place = index % self.count
        if place in self.broken:
            raise BrokenPictureError(f"{place} is torn")
        record = World(3).record(place)
        bare = Record(id=record.id, image=record.image, caption=record.caption)
        return bare if place in self.bare else record


class Endless(Given):
    __len__ = None


def test_a_record_that_lacks_what_the_view_needs_is_left_out_and_said():
    said = []
    made = held_out_examples(Given(6, bare=(0, 3), broken=(4,)), "grounding", 3, seed=1, skipped=said.append)
    whole = [VIEWS["grounding"](World(3).record(place), 1) for place in (1, 2, 5)]
    assert [example.prompt for example in made] == [example.prompt for example in whole]
    assert len(said) == 3 and "4 is torn" in said[2]


def test_a_view_that_refuses_a_record_is_no_end(monkeypatch):
    original = VIEWS["grounding"]

    def refusing(record, seed):
        if record.id == World(3).record(1).id:
            raise BrokenPictureError("too small")
        return original(record, seed)

    monkeypatch.setitem(validation.VIEWS, "grounding", refusing)
    assert len(held_out_examples(Given(3), "grounding", 4, seed=1)) == 4


@pytest.mark.parametrize("source", [Given(4, bare=range(4)), Endless(4, bare=range(4))])
def test_a_source_without_one_whole_record_is_an_error(source):
    with pytest.raises(MissingMetadataError):
        held_out_examples(source, "grounding", 2, seed=1)


@pytest.fixture
def folders(tmp_path):
    """A folder to train on and one that is held out."""
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name)
    return tmp_path


def change(folder, numbers, **values):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [{**row, **values} if place in numbers else row for place, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(base_path, folders, *settings):
    row = {"steps": 2, "batch_size": 2, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}
    stages = "stages=" + json.dumps(dict.fromkeys(("inpainting", "grounding", "editing"), row))
    places = [f"data.source=folder:{folders}/mine", f"data.held_out=folder:{folders}/other"]
    return make_config(base_path, stages, *places, "validation.every=1", "validation.samples=3", *settings)


def test_an_incomplete_held_out_record_does_not_end_a_run_and_is_listed_once(base_path, folders, run):
    change(folders / "other", (0,), pairs=[])
    assert run(asked(base_path, folders), folders / "run").complete
    lines = list(map(json.loads, (folders / "run/skipped.jsonl").read_text().splitlines()))
    assert [(line["stage"], line["held_out"]) for line in lines] == [("editing", True)]
    rows = map(json.loads, (folders / "run/metrics.jsonl").read_text().splitlines())
    counted = [(row["stage"], row.get("skipped")) for row in rows if row["kind"] == "validation"]
    expected = [("inpainting", None), ("grounding", None), ("editing", {"editing": 1})]
    assert counted == [row for row in expected for _ in range(2)]


def test_held_out_data_without_a_whole_record_is_refused_before_the_first_step(base_path, folders, run):
    change(folders / "other", range(6), pairs=[])
    with pytest.raises(FolderDataError, match=r"(?s)held out.*editing.*data\.held_out"):
        run(asked(base_path, folders), folders / "run", "all")
    assert not (folders / "run/metrics.jsonl").exists()


def test_a_held_out_prompt_that_the_base_cannot_read_is_refused_before_the_first_step(
    base_path, folders, run
):
    change(folders / "other", (1,), text="Üzüm")
    with pytest.raises(FolderDataError, match=r"(?s)held out.*inpainting.*cannot read 'Üzüm'"):
        run(asked(base_path, folders), folders / "run", "inpainting")
    assert not (folders / "run/metrics.jsonl").exists()


def test_earlier_tasks_are_looked_at_where_they_are_validated(base_path, folders, run):
    run(asked(base_path, folders), folders / "run", "inpainting..grounding")
    change(folders / "other", range(6), objects=[])
    with pytest.raises(FolderDataError, match=r"(?s)held out.*grounding"):
        run(asked(base_path, folders, "validation.tasks=seen"), folders / "run", "editing")
    assert run(asked(base_path, folders), folders / "run", "editing").trained == ("editing",)


def test_what_is_replayed_is_looked_at_too(base_path, folders):
    change(folders / "mine", range(6), objects=[])
    replaying = ["stages.editing.replay.grounding=0.5", "machine.micro_batch=1"]
    for more, wrong in ((replaying, True), ([], False)):
        config = asked(base_path, folders, "validation.samples=0", *more)
        model = load_base(config, torch.device("cpu"))
        with pytest.raises(FolderDataError, match=r"grounding, ") if wrong else nullcontext():
            check_sources(training_records(config.data), config, ("editing",), model, print)
