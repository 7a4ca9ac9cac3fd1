"""What a row costs while training runs: a few bytes in flat buffers, and no Python object of its own."""

import gc
import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data.additions import Additions
from recipes.cologen.data.folder_metadata import read_entries
from recipes.cologen.data.layouts.coco import CocoRows
from recipes.cologen.data.sources import packed
from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.packed import KeyIndex, PackedBytes
from recipes.cologen.data.sources.paired_folder import PairedFolder
from recipes.cologen.data.sources.shards import ShardRows
from tests.recipes.cologen.data.published import picture, write_lines
from tests.recipes.cologen.data.sources.test_packed import shard

ROWS = 1500
OUTLINE = [12.5, 3.25, 40.75, 3.0, 40.5, 22.0, 12.0, 21.5]


def lines():
    """Rows as detectors write them: a name and two objects with outlines."""
    for number in range(ROWS):
        found = {"label": "cat", "bbox": [4, 6, 10, 12], "segmentation": [OUTLINE]}
        yield {"file_name": f"./{number:06}.jpg", "text": "a cat on a sofa", "objects": [found, found]}


def write_list(folder):
    (folder / "rows.json").write_text(json.dumps(list(lines())))
    return str(folder / "rows.json")


def write_coco(folder):
    images = [
        {"id": n, "file_name": f"{n:012}.jpg", "height": 24, "width": 40, "license": 1} for n in range(ROWS)
    ]
    annotations = [
        {"id": n, "image_id": n % ROWS, "category_id": 1, "bbox": [4, 6, 10, 12], "segmentation": [OUTLINE]}
        for n in range(2 * ROWS)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(content))
    return str(folder / "coco.json")


def write_folder(folder):
    picture(1).save(folder / "a.png")
    write_lines(
        folder / "metadata.jsonl", *({**line, "file_name": "a.png", "objects": []} for line in lines())
    )
    return folder


def write_pairs(folder):
    for side in ("source", "target"):
        (folder / side).mkdir()
        for number in range(ROWS):
            (folder / side / f"{number}.png").touch()
    return str(folder)


def write_shard(folder):
    shard(folder, [(f"{number}.{kind}", b"1") for number in range(ROWS) for kind in ("txt", "cls")])
    return str(folder / "a.tar")


def write_objects(folder):
    return str(write_lines(folder / "objects.jsonl", *lines()))


OPENERS = {
    "lines": (write_objects, lambda path: JsonRows(path, "x"), 20),
    "list": (write_list, lambda path: JsonRows(path, "x"), 400),
    "additions": (write_objects, lambda path: Additions(path, "x"), 40),
    "coco": (write_coco, lambda path: CocoRows(path, "x"), 480),
    "folder": (write_folder, read_entries, 120),
    "paired folder": (write_pairs, lambda path: PairedFolder(path, "x"), 70),
    "tar": (write_shard, lambda path: ShardRows(path, "x"), 90),
}
"""What writes the rows, what opens them, and the most bytes that a row may cost (a dict costs 2,000)."""


@pytest.mark.parametrize("name", OPENERS)
def test_a_row_costs_few_bytes_and_no_object(name, tmp_path):
    write, opened, most = OPENERS[name]
    path = write(tmp_path)
    opened(path)  # what imports and caches keep is not the rows'
    gc.collect()
    tracemalloc.start()
    try:
        before, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
        rows = opened(path)
        gc.collect()
        bytes_a_row = (tracemalloc.get_traced_memory()[0] - before) / ROWS
        blocks_a_row = (sys.getallocatedblocks() - blocks) / ROWS
    finally:
        tracemalloc.stop()
    assert rows is not None
    assert bytes_a_row < most, f"{bytes_a_row:.0f} bytes a row"
    # An object for every row would be 1; pydantic and caches keep about a hundred in all.
    assert blocks_a_row < 0.3, f"{blocks_a_row:.2f} objects a row"


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_packed_bytes_are_a_list_of_them(items):
    held = PackedBytes(items)
    assert len(held) == len(items) and list(held) == items
    assert [held[index] for index in range(len(items))] == items
    for outside in (-1, len(items)):
        with pytest.raises(IndexError):
            held[outside]


@given(st.lists(st.text(max_size=3), max_size=30), st.text(max_size=3), st.booleans())
def test_a_key_is_found_at_all_its_places_and_no_place_is_missed(keys, other, collide):
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # all keys may share one hash; the one who asks compares them
            patch.setattr(packed, "_hash", lambda key: 7)
        index = KeyIndex(keys)
        for key in {*keys, other}:
            places = index.places(key)
            assert places == sorted(places, reverse=True)
            assert [place for place in places if keys[place] == key] == [
                place for place in reversed(range(len(keys))) if keys[place] == key
            ]


def test_of_several_additions_the_last_counts_even_if_hashes_collide(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_hash", lambda key: 7)
    rows = [{"file_name": name, "text": text} for name, text in (("a", "1"), ("b", "2"), ("a", "3"))]
    added = Additions(str(write_lines(tmp_path / "added.jsonl", *rows)), "x")
    assert (added.get("a")["text"], added.get("b")["text"], added.get("c")) == ("3", "2", {})
