"""Writes the report's HTML page: tables in text, pictures by relative links, everything else escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from prw.storage.atomic import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: .25em .7em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
.note { color: #555; }
"""


class Section(NamedTuple):
    """One part of the page: a heading, a sentence of plain text, and blocks of ready HTML."""

    heading: str
    note: str
    blocks: Sequence[str]


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page and return its path."""
    links = " · ".join(f'<a href="#{_anchor(section)}">{escape(section.heading)}</a>' for section in sections)
    body = "\n".join(_section(section) for section in sections)
    write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n<p>{links}</p>\n{body}\n</body>\n</html>\n",
    )
    return path


def html_table(head: Sequence[str], rows: Mapping[str, Sequence[object]]) -> str:
    """A table as HTML; numbers with a fraction show three digits, missing ones a dash."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = (
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(_shown(value))}</td>' for value in values)}</tr>"
        for name, values in rows.items()
    )
    return f"<table>\n<tr>{top}</tr>\n" + "\n".join(lines) + "\n</table>"


def html_picture(name: str, description: str) -> str:
    """A picture that lies beside the page."""
    return f'<p><img src="{escape(name, quote=True)}" alt="{escape(description, quote=True)}"></p>'


def html_details(summary: str, text: str) -> str:
    """Long text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _section(section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>\n' if section.note else ""
    blocks = "\n".join(section.blocks)
    return f'<h2 id="{_anchor(section)}">{escape(section.heading)}</h2>\n{note}{blocks}'


def _anchor(section: Section) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in section.heading.lower())


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
