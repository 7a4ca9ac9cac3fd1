"""The report of a made-up run: pictures that open and show something, a page whose links lead somewhere."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen.errors import RunFolderError
from recipes.cologen.report import build_report


class Page(HTMLParser):
    """Collects what a page points to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        self.anchors |= {values["id"] or ""} if "id" in values else set()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Path:
    """The report's page, built once for this file."""
    return build_report(finished_run)


def read(page: Path) -> Page:
    parsed = Page()
    parsed.feed(page.read_text(encoding="utf-8"))
    return parsed


def test_every_picture_opens_and_is_not_blank(page: Path) -> None:
    names = {path.name for path in page.parent.glob("*.png")}
    stages = {f"stage-{stage}.png" for stage in ("inpainting", "grounding", "control")}
    assert names == {*stages, "overview.png", "tables.png", "training.png", "validation.png", "routing.png"}
    for name in names:
        with Image.open(page.parent / name) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert (pixels != 255).any(axis=-1).mean() > 0.01, f"{name} is blank"


def test_links_lead_to_files_and_headings_and_nowhere_else(page: Path) -> None:
    parsed = read(page)
    assert len(parsed.links) > 10
    for link in parsed.links:
        assert "//" not in link and not link.startswith("/")
        if link.startswith("#"):
            assert link[1:] in parsed.anchors
        else:
            assert (page.parent / link).is_file(), link
    assert "http" not in page.read_text(encoding="utf-8")


def test_text_is_escaped(page: Path) -> None:
    assert "fake <run>" in read(page).text  # the run's name, as a reader sees it
    assert "fake &lt;run&gt;" in page.read_text(encoding="utf-8")


def test_the_page_tells_scores_shares_and_facts(page: Path) -> None:
    text = read(page).text
    for words in (
        "experts off",
        "pool as of its stage",
        "forgotten with as_of",
        "distance from rho",
        "torch",
    ):
        assert words in text
    assert "source_timestep: zero" in text  # the resolved config
    assert "same 5 held-out examples" in text


def test_a_second_report_measures_nothing_and_is_the_same(page: Path, finished_run: Path) -> None:
    before = {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    told: list[str] = []
    assert build_report(finished_run, announce=told.append) == page
    assert told == []
    assert {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()} == before


def test_a_run_that_holds_nothing_out_gets_curves_without_scores(run: Path) -> None:
    text = (run / "config.yaml").read_text().replace("source: world", "source: folder:pictures")
    (run / "config.yaml").write_text(text)
    page = build_report(run)
    assert "nothing to score" in read(page).text and "training.png" in read(page).links
    assert not (page.parent / "scores.json").exists()


def test_a_run_without_a_finished_stage_is_refused(run: Path) -> None:
    for stage in (run / "checkpoints").iterdir():
        (stage / "stage.json").unlink()
    with pytest.raises(RunFolderError, match=r"no finished stage yet.*recipes\.cologen\.train"):
        build_report(run)


def test_scores_json_is_as_promised(page: Path) -> None:
    scores = json.loads((page.parent / "scores.json").read_text())
    assert set(scores) == {"after_own_stage", "final_as_of", "final_full_pool", "experts_off", "n"}
    assert scores["n"] == 5
    stages = {"inpainting", "grounding", "control"}
    for name in ("after_own_stage", "final_as_of", "final_full_pool"):
        assert set(scores[name]) == stages
    assert set(scores["experts_off"]) == {*stages, "editing"}
    assert scores["after_own_stage"] == scores["final_as_of"]
