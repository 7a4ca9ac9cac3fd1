"""COCO-Stuff and LVIS: COCO's annotation files, whose masks are polygons or run lengths."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.cologen.config.data import SetSettings
from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.regions import coco_object
from recipes.cologen.data.raw import RawRecord
from recipes.cologen.data.sources.json_stream import Element, json_elements
from recipes.cologen.data.sources.packed import PackedBytes
from recipes.cologen.data.sources.rows import Row, matching_files
from recipes.cologen.data.text import text_of
from recipes.cologen.errors import BrokenPictureError, DataSetError

_CAPTION = -1
"""In the place of a category's name: the annotation is a caption."""
_CATEGORY_OF_CAPTION = "\x00"
"""In the place of a category's id, which never is this."""


class CocoRows:
    """One row for each picture of some COCO annotation files: its annotations and captions together.

    Pictures and annotations are held as the JSON that they were read from, in one buffer each, and parsed
    when a row is asked for. Ids may be numbers or text, and 7 is the same id as "7".

    Args:
        path: Comma-separated files, such as those of captions, instances and stuff of one split.
        origin: What messages call the data set.

    Raises:
        DataSetError: A file is missing, or is no COCO annotation file; or an annotation names a picture or a
            category that no file has.
    """

    columns: tuple[str, ...] = ("file_name", "height", "width", "objects", "captions")

    def __init__(self, path: str, origin: str) -> None:
        """Read and join the files; see the class."""
        joining = _Joining()
        for file in matching_files(path, origin):
            joining.read(file, origin)
        self._pictures, self._annotations, self._names = joining.pictures, joining.annotations, joining.names
        picture_of = joining.pictures_of_annotations(origin)
        # Annotations stand in the files' order; a picture's are found through this one.
        self._order: NDArray[np.int64] = np.argsort(picture_of, kind="stable")
        self._firsts: NDArray[np.int64] = np.searchsorted(
            picture_of[self._order], np.arange(len(self._pictures) + 1)
        )
        self._name_of = joining.name_of

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._pictures)

    def row(self, index: int) -> Row:
        """The picture at an index."""
        return self._row(index, whole=True)

    def name(self, index: int) -> str:
        """The picture's file."""
        return str(json.loads(self._pictures[index])["file_name"])

    def scan(self, columns: Sequence[str]) -> Iterator[Row | BrokenPictureError]:
        """All pictures in order; of their objects the names alone."""
        for index in range(len(self)):
            yield self._row(index, whole=False)

    def _row(self, index: int, *, whole: bool) -> Row:
        row: dict[str, Any] = {**json.loads(self._pictures[index]), "objects": [], "captions": []}
        for place in self._order[self._firsts[index] : self._firsts[index + 1]]:
            name = self._name_of[place]
            if name == _CAPTION:
                row["captions"].append(json.loads(self._annotations[place])["caption"])
            else:
                annotation = json.loads(self._annotations[place]) if whole else {}
                row["objects"].append({"name": self._names[name], **annotation})
        return row


class _Joining:
    """What some annotation files say, while they are read one after the other."""

    def __init__(self) -> None:
        self.pictures, self.annotations = PackedBytes(), PackedBytes()
        self.names: list[str] = []
        """Of categories, those of all files."""
        self.name_of = array("l")
        """Of each annotation the number of its category's name; _CAPTION for a caption."""
        self._image_of = array("l")
        """Of each annotation the number of its picture's id."""
        self._image_numbers: dict[str, int] = {}
        self._first_mention: list[str] = []
        """Of each picture's id what named it first, for messages."""
        self._place_of: dict[int, int] = {}
        """Of the number of a picture's id the place of the picture."""

    def read(self, file: Path, origin: str) -> None:
        """Add what one file says.

        Raises:
            DataSetError: It is no COCO file, or an annotation's category is not listed.
        """
        where = f"{origin}: {file}"
        seen, names, categories = set[str | None](), dict[str, str](), dict[str, int]()
        first = len(self.name_of)
        category_of = array("l")
        for element in json_elements(file, origin):
            seen.add(element.key)
            if element.key not in ("images", "annotations", "categories") or element.value is None:
                continue
            try:
                if element.key == "images":
                    self._add_picture(element.value, where)
                elif element.key == "categories":
                    names[_identity(element.value["id"])] = str(element.value["name"]).replace("_", " ")
                elif "caption" in element.value or not element.value.get("iscrowd"):
                    self._add_annotation(element, where)
                    caption = "caption" in element.value
                    category = _CATEGORY_OF_CAPTION if caption else _identity(element.value["category_id"])
                    category_of.append(categories.setdefault(category, len(categories)))
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise DataSetError(
                    f"{where}: an element of {element.key!r} is not as COCO's are ({type(error).__name__}: "
                    f"{error}): {element.text:.120}"
                ) from error
        if not {"images", "annotations"} <= seen:
            raise DataSetError(f"{where} is no COCO file; expected 'images' and 'annotations'")
        for category, number in categories.items():
            if category not in names and category != _CATEGORY_OF_CAPTION:
                annotation = json.loads(self.annotations[first + category_of.index(number)])
                raise _unknown_category(category, annotation, names, where)
        numbers = [self._name_number(names.get(category)) for category in categories]
        self.name_of.extend(numbers[category] for category in category_of)

    def pictures_of_annotations(self, origin: str) -> NDArray[np.int64]:
        """Of each annotation the place of its picture.

        Raises:
            DataSetError: No file has the picture.
        """
        places = np.full(len(self._image_numbers), -1, dtype=np.int64)
        for number, place in self._place_of.items():
            places[number] = place
        lacking = np.flatnonzero(places < 0)
        if len(lacking):
            identity = list(self._image_numbers)[lacking[0]]
            raise DataSetError(
                f"{origin}: {self._first_mention[lacking[0]]} names picture {identity!r}, which 'images' of "
                f"no file lists; that is so of {len(lacking)} pictures. Give the file that lists them too, "
                "or take their annotations out"
            )
        return places[np.frombuffer(self._image_of, dtype=np.dtype("l"))] if self._image_of else places[:0]

    def _add_picture(self, image: Mapping[str, Any], where: str) -> None:
        number = self._image_number(image["id"], f"{where}: 'images'")
        if number in self._place_of:
            return
        self._place_of[number] = len(self.pictures)
        row = {"file_name": _file_name(image), "height": image["height"], "width": image["width"]}
        self.pictures.append(json.dumps(row).encode())

    def _add_annotation(self, element: Element, where: str) -> None:
        annotation = element.value
        mention = f"{where}: annotation {annotation.get('id')!r}"
        self._image_of.append(self._image_number(annotation["image_id"], mention))
        self.annotations.append(element.text.encode("utf-8", "surrogatepass"))

    def _image_number(self, value: Any, mention: str) -> int:
        number = self._image_numbers.setdefault(_identity(value), len(self._image_numbers))
        if number == len(self._first_mention):
            self._first_mention.append(mention)
        return number

    def _name_number(self, name: str | None) -> int:
        """The number of a category's name; of none, as captions have, _CAPTION."""
        if name is None:
            return _CAPTION
        self.names.append(name)
        return len(self.names) - 1


def _unknown_category(
    category: str, annotation: Mapping[str, Any], names: Mapping[str, str], where: str
) -> DataSetError:
    return DataSetError(
        f"{where}: annotation {annotation.get('id')!r} is of category {category!r}, which its 'categories' "
        f"do not list ({len(names)} are listed). Add it there, or take the annotation out"
    )


def _identity(value: Any) -> str:
    """An id as text; programs that write COCO files do not agree on whether ids are numbers.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{value!r} is no id; expected a number or a text")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
