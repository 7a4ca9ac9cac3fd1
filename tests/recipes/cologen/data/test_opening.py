"""The data settings open what they name."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data.opening import StageSource, held_out_records, training_records
from recipes.cologen.data.world import World
from recipes.cologen.errors import DataSetError, FolderDataError


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        pixels = np.full((20, 24, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": "gray"}) for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return f"folder:{tmp_path}"


def test_the_world_is_endless_and_held_out_by_its_seed():
    data = DataSettings(seed=3, held_out_seed=4)
    assert training_records(data).stage("control") == StageSource(World(3), None)
    assert held_out_records(data).stage("control") == StageSource(World(4, held_out=True), None)


def test_a_folder_has_a_length_and_one_size(pictures):
    records, count, _ = training_records(DataSettings(source=pictures, size=(16, 16))).stage("editing")
    assert count == 3
    assert records.record(1).image.shape == (16, 16, 3)


def test_a_run_on_a_folder_holds_out_only_what_is_named(pictures):
    assert held_out_records(DataSettings(source=pictures)) is None
    world = held_out_records(DataSettings(source=pictures, held_out="world"))
    assert world.stage("control").records == World(1_000_003, held_out=True)
    other = held_out_records(DataSettings(held_out=pictures))
    assert other.stage("control").records.record(0).caption == "gray"


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FolderDataError):
        training_records(DataSettings(source=f"folder:{tmp_path / 'absent'}"))


@pytest.fixture
def sets(pictures):
    own = SetSettings(layout="own", path=pictures, tasks=("control", "inpainting"))
    return {
        "mine": own,
        "theirs": own.model_copy(update={"licence": "MIT", "tasks": ("control",), "repeat": 2}),
    }


def test_a_stage_reads_the_sets_that_serve_it(sets):
    data = training_records(DataSettings(source="sets", sets=sets))
    assert data.stage("control").num_records == 9
    assert data.stage("inpainting").num_records == 3
    assert data.stage("control").records.record(3).origin.licence == "mit"
    with pytest.raises(DataSetError, match=r"no data set serves stage 'editing'.*has mine, theirs.*omniedit"):
        data.stage("editing")


def test_the_licence_filter_leaves_sets_out_and_says_so(sets):
    data = training_records(DataSettings(source="sets", sets=sets, licence="permissive"))
    assert [part.name for part in data.sets] == ["theirs"] and data.refused == {"mine": "unstated"}
    with pytest.raises(DataSetError, match=r"data\.licence leaves out mine \(unstated\)"):
        data.stage("inpainting")


def test_held_out_sets_are_others(sets):
    held_out = {"theirs": sets["theirs"]}
    data = DataSettings(source="sets", sets=sets, held_out="sets", held_out_sets=held_out)
    assert held_out_records(data).stage("control").num_records == 6
