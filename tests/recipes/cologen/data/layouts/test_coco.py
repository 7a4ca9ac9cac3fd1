"""COCO's annotation files: joined whatever their ids and order; what does not fit is named by file and id."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.data.layouts.coco import CocoRows
from recipes.cologen.errors import DataSetError
from tests.recipes.cologen.data.published import write_json


def image(identity, name="a.jpg"):
    return {"id": identity, "file_name": name, "height": 24, "width": 40}


def annotation(identity, of, category=1, **more):
    return {"id": identity, "image_id": of, "category_id": category, "bbox": [0, 0, 4, 4], **more}


CATEGORIES = [{"id": 1, "name": "traffic_light"}]


def coco(folder, name="coco.json", *, images=(), annotations=(), categories=CATEGORIES):
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return str(write_json(folder / name, content))


identities = st.one_of(st.integers(0, 10**6), st.text(min_size=1, max_size=6).map(lambda text: f"id {text}"))


@given(
    st.lists(identities, min_size=1, max_size=6, unique_by=str),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=12),
    st.permutations(["info", "images", "annotations", "categories"]),
)
@settings(max_examples=60, deadline=None)
def test_rows_hold_what_a_plain_join_gives(tmp_path_factory, ids, pairs, order):
    folder = tmp_path_factory.mktemp("coco")
    images = [image(identity, f"{place}.jpg") for place, identity in enumerate(ids)]
    annotations = [
        annotation(
            number, ids[place % len(ids)], iscrowd=int(crowd), **({"caption": f"ü{number}"} if says else {})
        )
        for number, (place, says, crowd) in enumerate(pairs)
    ]
    content = {"info": {"year": 1}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    text = json.dumps({key: content[key] for key in order}, ensure_ascii=False, indent=1)
    (folder / "coco.json").write_text(text, encoding="utf-8")
    rows = CocoRows(str(folder / "coco.json"), "x")
    assert len(rows) == len(ids)
    for place, (identity, cheap) in enumerate(zip(ids, rows.scan(("objects",)), strict=True)):
        own = [one for one in annotations if one["image_id"] == identity]
        captions = [one["caption"] for one in own if "caption" in one]
        objects = [one for one in own if "caption" not in one and not one["iscrowd"]]
        wanted = {"file_name": f"{place}.jpg", "height": 24, "width": 40}
        named = [{"name": "traffic light", **one} for one in objects]
        assert rows.row(place) == {**wanted, "objects": named, "captions": captions}
        assert cheap["captions"] == captions and len(cheap["objects"]) == len(objects)
        assert rows.name(place) == f"{place}.jpg"


def test_a_number_and_its_text_are_one_id(tmp_path):
    path = coco(
        tmp_path,
        images=[image("7")],
        annotations=[annotation(1, 7, "1"), annotation(2, "7", 1.0)],
    )
    assert [item["id"] for item in CocoRows(path, "x").row(0)["objects"]] == [1, 2]


def test_files_are_joined_in_any_order(tmp_path):
    captions = coco(tmp_path, "a.json", annotations=[{"id": 1, "image_id": 7, "caption": "a light"}])
    instances = coco(tmp_path, "b.json", images=[image(7)], annotations=[annotation(2, 7)])
    for path in (f"{captions},{instances}", f"{instances},{captions}"):
        row = CocoRows(path, "x").row(0)
        assert row["captions"] == ["a light"] and len(row["objects"]) == 1


WRONG = {
    "an orphan": (
        {"images": [image(7)], "annotations": [annotation(3, 8)]},
        r"coco\.json: annotation 3 names picture '8', which 'images' of no file lists.*1 pictures",
    ),
    "a caption's orphan": (
        {"images": [image(7)], "annotations": [{"id": 4, "image_id": "x", "caption": "a"}]},
        r"coco\.json: annotation 4 names picture 'x'",
    ),
    "an unknown category": (
        {"images": [image(7)], "annotations": [annotation(3, 7), annotation("five", 7, "dog")]},
        r"coco\.json: annotation 'five' is of category 'dog', which its 'categories' do not list \(1 are",
    ),
    "no category": (
        {"images": [image(7)], "annotations": [{"id": 3, "image_id": 7, "bbox": [0, 0, 1, 1]}]},
        r"coco\.json: an element of 'annotations' is not as COCO's are \(KeyError: 'category_id'\): \{",
    ),
    "an id that is none": (
        {"images": [image([7])], "annotations": []},
        r"coco\.json: an element of 'images' is not as COCO's are \(TypeError: \[7\] is no id",
    ),
    "no height": (
        {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": []},
        r"coco\.json: an element of 'images' .*KeyError: 'height'",
    ),
    "a list of numbers": ({"images": [7], "annotations": []}, r"coco\.json: an element of 'images'"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named_by_file_and_id(content, message, tmp_path):
    with pytest.raises(DataSetError, match=message):
        CocoRows(coco(tmp_path, **content), "data.sets.x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no COCO file; expected 'images' and 'annotations'"),
        ('{"images": []}', "is no COCO file"),
        ('{"images": [], "annotations": [', r"cannot be read as JSON"),
        ('{"info": [1 2]}', r"cannot be read as JSON.*Expecting ','"),
        ('{"images": []} x', r"cannot be read as JSON.*Extra data"),
        ("3", "should hold a list or an object, but holds int"),
        ("", "cannot be read as JSON"),
    ],
)
def test_what_is_no_coco_file_is_refused(text, message, tmp_path):
    (tmp_path / "coco.json").write_text(text)
    with pytest.raises(DataSetError, match=message):
        CocoRows(str(tmp_path / "coco.json"), "x")
