"""The page about data says what the layouts are, and its config is one that is read."""

import re
from pathlib import Path

import pytest
import yaml

from recipes.cologen.config.annotators import OPTIONS
from recipes.cologen.config.run import parse_config
from recipes.cologen.data.layouts import LAYOUTS
from recipes.cologen.stages import COLOGEN_STAGES

PAGE = (Path(__file__).parents[4] / "docs/recipes/data.md").read_text(encoding="utf-8")
PUBLISHED = [layout for layout in LAYOUTS.values() if layout.home != "your own"]


def cells(name):
    row = re.search(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row[0].strip("|").split("|")]


@pytest.mark.parametrize("layout", PUBLISHED, ids=lambda layout: layout.name)
def test_the_table_has_every_layout_as_it_is(layout):
    _, stages, home, licence, columns, options, size = cells(layout.name)
    assert stages == ", ".join(layout.tasks) and f"({layout.home})" in home
    assert (licence, size) == (layout.licence, layout.size)
    assert columns == ", ".join(f"`{name}`" for name in layout.columns)
    assert options == (", ".join(f"`{name}` {value:g}" for name, value in layout.options.items()) or "none")


def test_every_stage_has_a_published_set():
    assert {task for layout in PUBLISHED for task in layout.tasks} == set(COLOGEN_STAGES)


def test_the_config_of_the_page_is_read():
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    first, buckets, cache = (yaml.safe_load(block)["data"] for block in blocks)

    def read(data):
        return parse_config({"name": "page", "base": {"path": "x"}, "data": data}).data

    assert set(read(first).sets) == {"album", "subjects", "edits", "brush"}
    assert all(part.layout in LAYOUTS for part in read(first).sets.values())
    assert read({**first, **cache}).cache.stages == ("customization", "editing")
    assert read({**first, **buckets, "size": None}).buckets.group == 8


MAPS = (Path(__file__).parents[4] / "docs/recipes/maps.md").read_text(encoding="utf-8")


def test_the_configs_of_the_page_about_maps_are_read():
    blocks = re.findall(r"^```yaml\n(.*?)^```$", MAPS, re.MULTILINE | re.DOTALL)
    maps, stamps = (parse_config({"name": "p", "base": {"path": "x"}, **yaml.safe_load(b)}) for b in blocks)
    assert set(maps.data.annotators) == {"depth", "segmentation", "soft_edge", "lineart", "canny"}
    assert stamps.data.sets["stamps"].layout == "stamps"


def test_the_page_about_maps_has_every_option_of_stamps_and_annotators():
    told = set(re.findall(r"`(\w+)`", MAPS))
    assert set(LAYOUTS["stamps"].options) <= told
    assert {option for maps in OPTIONS.values() for each in maps.values() for option in each} <= told
