"""What a set holds has one hash wherever it lies, whatever its layout, and another where pictures differ."""

import datasets
import pytest
from PIL import Image

from recipes.cologen.config.data import DataSettings, SetSettings
from recipes.cologen.data import content
from recipes.cologen.data.content import set_content
from recipes.cologen.data.sets import DataSet
from tests.recipes.cologen.data.published import png
from tests.recipes.cologen.data.published_tables import PUBLISHED

ALLOWED = DataSettings(empty_captions="allow")


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


@pytest.mark.parametrize("layout", PUBLISHED)
def test_every_layout_has_the_same_content_in_two_places(layout, tmp_path, monkeypatch):
    seen = []
    original = content.record_facts
    monkeypatch.setattr(content, "record_facts", lambda *given: seen.append(original(*given)) or seen[-1])
    found = set()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        found.add(set_content(DataSet("mine", PUBLISHED[layout](tmp_path / place), ALLOWED)))
    assert len(found) == 1 and seen and ["unreadable"] not in seen


def paired(folder, width=24):
    for side in ("source", "target"):
        (folder / side).mkdir(parents=True)
        Image.new("RGB", (width, 16), "red").save(folder / side / "a.png")
    (folder / "target/a.txt").write_text("make it red")
    return DataSet("mine", SetSettings(layout="paired", path=f"folder:{folder}"), ALLOWED)


def test_a_paired_folder_too_and_a_picture_of_another_size_is_another_content(tmp_path):
    one, two, other = (
        set_content(paired(tmp_path / name, width))
        for name, width in (("one", 24), ("two", 24), ("other", 32))
    )
    assert one == two != other


def test_pictures_that_a_table_holds_count_by_their_bytes(tmp_path):
    found = []
    for colour in (0, 0, 1):
        file = tmp_path / f"{len(found)}.parquet"
        picture = Image.new("RGB", (24, 16), (colour, 0, 0))
        datasets.Dataset.from_list([{"image": png(picture), "text": "a cat"}]).to_parquet(file)
        found.append(set_content(DataSet("mine", SetSettings(layout="own", path=f"parquet:{file}"), ALLOWED)))
    assert found[0] == found[1] != found[2]


def test_additions_count(tmp_path):
    contents = []
    for name, label in (("one", "cat"), ("two", "cat"), ("other", "dog")):
        (tmp_path / name).mkdir()
        settings = PUBLISHED["journeydb"](tmp_path / name)
        with open(settings.additions, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read().replace('"label": "cat"', f'"label": "{label}"')
        with open(settings.additions, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
        contents.append(set_content(DataSet("mine", settings, ALLOWED)))
    assert contents[0] == contents[1] != contents[2]
