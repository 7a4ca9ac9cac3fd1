"""The documentation does what it says: its Python runs, page by page, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)(?P<target>[^)#\s]+)")  # pictures too


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_blocks(text: str) -> str:
    """The page's Python as one program that keeps the page's line numbers; other lines are empty.

    A block whose fence says `python notest` is left out: it needs a GPU or a download.
    """
    lines = [""] * text.count("\n")
    for fence in FENCE.finditer(text):
        if fence["info"].strip() == "python":
            first = text.count("\n", 0, fence.start("code"))
            code = fence["code"].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


PAGES_WITH_CODE = [page for page in PAGES if python_blocks(page.read_text(encoding="utf-8")).strip()]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = compile(python_blocks(page.read_text(encoding="utf-8")), str(page), "exec")
    exec(program, {"__name__": "__docs__"})


def test_the_pages_that_promise_code_have_it() -> None:
    assert {"README.md", "docs/quickstart.md"} <= {name(page) for page in PAGES_WITH_CODE}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = [link["target"] for link in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_a_block_keeps_its_line_and_marks_are_heeded() -> None:
    page = "one\n```python\nx = 1\n```\n```python notest\nx = 2\n```\n```bash\nls\n```\n"
    assert python_blocks(page).splitlines()[2] == "x = 1"
    assert "2" not in python_blocks(page)
    assert "ls" not in python_blocks(page)
