"""COCO-Stuff and LVIS: COCO's annotation files, whose masks are polygons or run lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.cologen.config_data import SetSettings
from recipes.cologen.data.layouts.layout import Layout, Reading, text_of
from recipes.cologen.data.layouts.regions import coco_object
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.sources.json_files import read_json
from recipes.cologen.data.sources.rows import Row, matching_files
from recipes.cologen.errors import DataSetError


class CocoRows:
    """One row for each picture of some COCO annotation files: its annotations and captions together.

    Args:
        path: Comma-separated files, such as those of captions, instances and stuff of one split.
        origin: What messages call the data set.

    Raises:
        DataSetError: A file is missing, or is no COCO annotation file.
    """

    columns: tuple[str, ...] = ("file_name", "height", "width", "objects", "captions")

    def __init__(self, path: str, origin: str) -> None:
        """Read and join the files; see the class."""
        rows: dict[Any, dict[str, Any]] = {}
        for file in matching_files(path, origin):
            content = read_json(str(file), origin)
            if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
                raise DataSetError(f"{origin}: {file} is no COCO file; expected 'images' and 'annotations'")
            _join(rows, content)
        self._rows: list[dict[str, Any]] = list(rows.values())

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._rows)

    def row(self, index: int) -> Row:
        """The picture at an index."""
        return self._rows[index]

    def name(self, index: int) -> str:
        """The picture's file."""
        return str(self._rows[index]["file_name"])

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All pictures in order."""
        yield from self._rows


def _join(rows: dict[Any, dict[str, Any]], content: Mapping[str, Any]) -> None:
    """Add what one annotation file says to the rows, by picture."""
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    for image in content["images"]:
        row = {"height": image["height"], "width": image["width"], "objects": [], "captions": []}
        rows.setdefault(image["id"], {"file_name": _file_name(image), **row})
    for annotation in content["annotations"]:
        row = rows[annotation["image_id"]]
        if "caption" in annotation:
            row["captions"].append(annotation["caption"])
        elif not annotation.get("iscrowd"):
            name = names[annotation["category_id"]].replace("_", " ")
            row["objects"].append({"name": name, **annotation})


def _file_name(image: Mapping[str, Any]) -> str:
    """LVIS 1.0 has no file names: its pictures are COCO's, named at the end of `coco_url`."""
    return str(image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:]))


def _open(settings: SetSettings, origin: str) -> CocoRows:
    kind, _, path = settings.path.partition(":")
    if kind != "json":
        raise DataSetError(f"{origin}: {settings.layout} is read from annotation files; write json:FILE,FILE")
    return CocoRows(path, origin)


def _no_objects(row: Row, options: Mapping[str, float]) -> str | None:
    return None if row["objects"] else "no objects"


def _record(reading: Reading) -> RawRecord:
    picture = reading.picture(reading.row["file_name"])
    size = picture.size[::-1]
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=next(map(text_of, reading.row["captions"]), ""),
        origin=reading.origin(picture),
        objects=tuple(coco_object(item, item["name"], item["name"], size) for item in reading.row["objects"]),
    )


COCO_STUFF = Layout(
    name="coco_stuff",
    home="https://github.com/nightrome/cocostuff",
    tasks=("inpainting",),
    licence="cc-by-4.0",
    columns=CocoRows.columns,
    light=("captions", "objects"),
    texts=lambda row: row["captions"][:1] or [""],
    reject=_no_objects,
    record=_record,
    open_rows=_open,
    size="118,287 pictures (train2017)",
)
LVIS = Layout(
    name="lvis",
    home="https://www.lvisdataset.org",
    tasks=("grounding",),
    licence="cc-by-4.0",
    columns=CocoRows.columns,
    light=("objects",),
    reject=_no_objects,
    record=_record,
    open_rows=_open,
    size="100,170 pictures (train)",
)
