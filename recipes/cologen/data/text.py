"""Reads captions and prompts as text: by their encoding, without marks that are no part of them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from recipes.cologen.errors import BrokenPictureError

_MARKS = (
    # UTF-32's little-endian mark begins with UTF-16's, so it comes first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
"""Byte order marks, and the encoding that each names."""
_WIDE_MARKS = tuple(mark for mark, name in _MARKS if name != "utf-8-sig")
_BOM = "\ufeff"
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""What no caption holds: NUL, which UTF-16 read as UTF-8 is full of, and halves of characters."""


def decoded_text(content: bytes) -> str:
    """The text of a file: UTF-8, or what its byte order mark says (UTF-16, UTF-32).

    Other encodings cannot be told apart from their bytes; a guess would train on garbled captions.

    Raises:
        BrokenPictureError: It is in no such encoding.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in content:
        raise BrokenPictureError(
            "its text holds NUL bytes, as UTF-16 without a byte order mark does. Convert it: "
            f"iconv -f {_byte_order(content)} -t utf-8"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BrokenPictureError(
            f"its text is not UTF-8 ({error}), probably Windows' cp1252 or another old encoding. Convert it: "
            "iconv -f cp1252 -t utf-8"
        ) from error
    return cleaned(text)


def _byte_order(content: bytes) -> str:
    """The name of UTF-16 in the byte order whose upper bytes are zero more often, as in Latin text."""
    return "utf-16be" if content[::2].count(0) > content[1::2].count(0) else "utf-16le"


def recoded_lines(path: Path) -> list[bytes] | None:
    """The lines of a file in UTF-16 or UTF-32, as its mark says, in UTF-8; None of any other file.

    Only in these encodings a newline is more than one byte, so that lines cannot be found by their bytes.

    Raises:
        BrokenPictureError: As `decoded_text`.
    """
    with path.open("rb") as content:
        start = content.read(len(codecs.BOM_UTF32_LE))
    if not start.startswith(_WIDE_MARKS):
        return None
    return decoded_text(path.read_bytes()).encode("utf-8").splitlines()


def cleaned(text: str) -> str:
    """A text without byte order marks.

    Raises:
        BrokenPictureError: It holds what no text does, so it was decoded wrongly before.
    """
    found = _NO_TEXT.search(text)
    if found is not None:
        raise BrokenPictureError(
            f"the text {text!r:.60} holds {found[0]!r}, so it was read in the wrong encoding. Write it anew "
            "as UTF-8"
        )
    return text.replace(_BOM, "")


def is_text(value: Any) -> bool:
    """Whether a value is a caption or prompt that says something, or a list with such a one.

    Raises:
        BrokenPictureError: As `text_of`.
    """
    return bool(text_of(value))


def text_of(value: Any) -> str:
    """A caption or prompt without blanks and byte order marks around it; empty where there is none.

    Of a list of captions it is the first that says something.

    Raises:
        BrokenPictureError: As `cleaned`.
    """
    if isinstance(value, (list, tuple)):
        return next((text for text in map(text_of, value) if text), "")
    return cleaned(value).strip() if isinstance(value, str) else ""


def has_several(value: Any) -> bool:
    """Whether a value is a list of more than one caption, of which `text_of` takes the first.

    Those after the first are counted, not read: what is wrong with one of them is no fault of the row.
    """
    if not isinstance(value, (list, tuple)):
        return False
    return sum(isinstance(one, str) and bool(one.replace(_BOM, "").strip()) for one in value) > 1
