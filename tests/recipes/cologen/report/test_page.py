"""The page: what goes in as text comes out as text."""

from html import unescape
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.report.page import Section, html_details, html_picture, html_table, write_page

text = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
HARD = "<script>alert('x')</script> & \"quotes\""


@given(head=text, name=text, value=text)
def test_cells_show_exactly_what_was_given(head: str, name: str, value: str) -> None:
    table = html_table([head], {name: [value]})
    inner = table.replace("<table>", "").replace("</table>", "")
    for tag in ("tr", "th", "td"):
        inner = inner.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    assert unescape(inner).replace("\n", "") == (head + name + value)
    assert "<" not in inner and ">" not in inner


def test_numbers_show_three_digits_and_gaps_a_dash() -> None:
    table = html_table(["", "a", "b", "c"], {"row": [0.12345, None, 7]})
    assert "<td>0.123</td><td>–</td><td>7</td>" in table


def test_no_block_lets_markup_through(tmp_path: Path) -> None:
    blocks = [html_picture(HARD, HARD), html_details(HARD, HARD), html_table([HARD], {HARD: [HARD]})]
    page = write_page(tmp_path / "index.html", HARD, [Section(HARD, HARD, blocks)]).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
