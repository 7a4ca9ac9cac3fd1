"""Reads a large JSON file one element after the other, so that it never is whole in memory as objects."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.cologen.data.text import decoded_text
from recipes.cologen.errors import DataSetError

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Element(NamedTuple):
    """One element of a list: of the file's own, or of one that its object holds at the top."""

    key: str | None
    """Of the list in the file's object; None in a file that is a list."""
    value: Any
    """What it holds; of a key without a list its whole value."""
    text: str
    """The JSON that it was read from."""


def json_elements(file: Path, origin: str) -> Iterator[Element]:
    """Elements of a JSON file that is a list, or an object of lists, in the file's order.

    An empty list of an object still gives one element, with the value None, since its key is there.

    Args:
        file: Its path.
        origin: What messages call the data set.

    Raises:
        DataSetError: It is missing, no JSON, or neither a list nor an object.
    """
    try:
        text = decoded_text(file.read_bytes())
        yield from _elements(text, file, origin)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataSetError):
            raise
        raise DataSetError(f"{origin}: {file} cannot be read as JSON ({error})") from error


def _elements(text: str, file: Path, origin: str) -> Iterator[Element]:
    place = _after_blanks(text, 0)
    if text[place : place + 1] == "[":
        place = yield from _list(text, place, None)
    elif text[place : place + 1] == "{":
        place = yield from _object(text, place)
    else:
        kind = type(json.loads(text)).__name__
        raise DataSetError(f"{origin}: {file} should hold a list or an object, but holds {kind}")
    if place != len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _list(text: str, place: int, key: str | None) -> Generator[Element, None, int]:
    """The elements of the list that begins at a place; returns the place of what follows it."""
    place = _after_blanks(text, place + 1)
    if text[place : place + 1] == "]":
        if key is not None:
            yield Element(key, None, "null")
        return _after_blanks(text, place + 1)
    while True:
        value, end = _DECODER.raw_decode(text, place)
        yield Element(key, value, text[place:end])
        place = _after_blanks(text, end)
        if text[place : place + 1] == "]":
            return _after_blanks(text, place + 1)
        place = _expect(text, place, ",")


def _object(text: str, place: int) -> Generator[Element, None, int]:
    """The elements of the lists of the object that begins at a place; returns the place of what follows."""
    place = _after_blanks(text, place + 1)
    if text[place : place + 1] == "}":
        return _after_blanks(text, place + 1)
    while True:
        key, end = _DECODER.raw_decode(text, place)
        place = _expect(text, _after_blanks(text, end), ":")
        if text[place : place + 1] == "[":
            place = yield from _list(text, place, str(key))
        else:
            value, end = _DECODER.raw_decode(text, place)
            yield Element(str(key), value, text[place:end])
            place = _after_blanks(text, end)
        if text[place : place + 1] == "}":
            return _after_blanks(text, place + 1)
        place = _expect(text, place, ",")


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return place if found is None else found.end()


def _expect(text: str, place: int, mark: str) -> int:
    """The place of what follows a mark.

    Raises:
        JSONDecodeError: There is another one.
    """
    if text[place : place + 1] != mark:
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, place)
    return _after_blanks(text, place + 1)
