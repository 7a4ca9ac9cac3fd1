"""The data settings open what they name."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.config import DataSettings
from recipes.cologen.data.world import World
from recipes.cologen.errors import FolderDataError
from recipes.cologen.training.sources import held_out_records, training_records


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
    assert training_records(data) == (World(3), None)
    assert held_out_records(data) == World(4, held_out=True)


def test_a_folder_has_a_length_and_one_size(pictures):
    records, count = training_records(DataSettings(source=pictures, size=(16, 16)))
    assert count == 3
    assert records.record(1).image.shape == (16, 16, 3)


def test_a_run_on_a_folder_holds_out_only_what_is_named(pictures):
    assert held_out_records(DataSettings(source=pictures)) is None
    assert held_out_records(DataSettings(source=pictures, held_out="world")) == World(
        1_000_003, held_out=True
    )
    other = held_out_records(DataSettings(held_out=pictures))
    assert other is not None
    assert other.record(0).caption == "gray"


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FolderDataError):
        training_records(DataSettings(source=f"folder:{tmp_path / 'absent'}"))
