"""The page end to end: the command serves it, headless Chromium uses it as people do.

The pictures in the docs are made here, from a trained run:

    export PRW_APP_RUN=runs/tiny PRW_APP_SCREENSHOTS=docs/assets
    scripts/test tests/recipes/cologen/app/test_browser.py
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Response, expect, sync_playwright

from recipes.cologen.data.scene import Scene, SceneObject, draw
from recipes.cologen.generate import main

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# As root there is no sandbox; the rest keeps Chromium from asking its makers for news.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
RUN = os.environ.get("PRW_APP_RUN")
SCENE = Scene(
    "gray",
    (
        SceneObject("circle", "large", "red", "top left"),
        SceneObject("square", "small", "blue", "bottom right"),
    ),
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no chromium; scripts/browser installs it"
)


@pytest.fixture(scope="module")
def address(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page as a user does, and close it with Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    command = ["-m", "recipes.cologen.app", "--checkpoint", RUN or str(finished_run), "--port", str(port)]
    hostile = {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/"}
    with log.open("wb") as lines:
        serving = subprocess.Popen(
            [sys.executable, *command], stdout=lines, stderr=lines, env={**os.environ, **hostile}
        )
    try:
        for _ in range(1200):
            if f"http://127.0.0.1:{port}/ (" in log.read_text() or serving.poll() is not None:
                break
            time.sleep(0.1)
        assert serving.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        serving.send_signal(2)
        assert serving.wait(30) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page in a window of its own; nothing but its server may have been asked for anything."""
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    opened = context.new_page()
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.goto(address)
    yield opened
    context.close()
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    assert [line for line in said if "Content Security Policy" in line] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(draw(SCENE)).resize((256, 256), Image.Resampling.NEAREST).save(path)
    return path


def open_tab(page: Page, task: str, picture: Path, prompt: str) -> None:
    page.get_by_role("tab", name=task).click()
    page.locator(f"#{task}-image input[type=file]").set_input_files(picture)
    expect(page.locator(f"#{task}-image img")).to_be_visible()
    page.locator(f"#{task}-prompt textarea").fill(prompt)


def drawn(page: Page, task: str) -> np.ndarray:
    """Wait for the result and fetch it as the browser got it."""
    image = page.locator(f"#{task}-result img")
    expect(image).to_be_visible(timeout=60_000)
    source = image.get_attribute("src")
    assert source is not None
    with Image.open(BytesIO(page.request.get(source).body())) as opened:
        return np.asarray(opened.convert("RGB")).copy()


def settings_of(page: Page, task: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"#{task}-settings").click()
    path = folder / "settings.json"
    waiting.value.save_as(path)
    return path


def by_command(settings: Path) -> np.ndarray:
    out = settings.with_name("again.png")
    assert main(["--settings", str(settings), "--output", str(out)]) == 0
    with Image.open(out) as opened:
        return np.asarray(opened.convert("RGB")).copy()


def keep(page: Page, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("PRW_APP_SCREENSHOTS", tmp_path))
    page.wait_for_timeout(500)  # messages fade in
    page.screenshot(path=folder / f"app-{name}.png", full_page=True)


def paint(page: Page) -> None:
    """Paint over the upper left quarter of the easel's picture."""
    easel = page.locator("#inpainting-easel canvas").first
    expect(page.locator("#inpainting-easel")).to_contain_text("%")
    page.wait_for_timeout(1000)  # the canvas takes its size from the picture
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    assert box is not None
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(centre[0] - 115, centre[1] - 110)
    page.mouse.down()
    for right, down in ((-30, -110), (-30, -70), (-115, -70), (-115, -30), (-30, -30)):
        page.mouse.move(centre[0] + right, centre[1] + down, steps=2)
    page.mouse.up()


def test_upload_paint_draw_and_draw_the_same_again_by_command(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    open_tab(page, "inpainting", photo, "red circle top left and blue square bottom right on gray")
    paint(page)
    page.locator("#inpainting-draw").click()
    picture = drawn(page, "inpainting")
    expect(page.locator("#inpainting-shares img")).to_be_visible()
    keep(page, "inpainting", tmp_path)
    settings = settings_of(page, "inpainting", tmp_path)
    assert np.array_equal(by_command(settings), picture)
    held = json.loads(settings.read_text())
    assert held["mask"] is not None and held["settings"]["task"] == "inpainting"


def test_what_is_no_picture_is_refused_in_words_and_the_page_goes_on(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("<script>alert(1)</script>")
    page.get_by_role("tab", name="grounding").click()
    page.locator("#grounding-image input[type=file]").set_input_files(bad)
    expect(page.get_by_text(re.compile("the file is not a picture that can be read here"))).to_be_visible()
    open_tab(page, "grounding", photo, "cover <b>the</b> blue square " + "red " * 60)
    page.locator("#grounding-draw").click()
    notes = page.locator("#grounding-notes")
    expect(notes.locator("textarea")).to_have_value(re.compile("the base cannot read '<b>the</b>'"))
    expect(notes).to_contain_text("Not generated")
    expect(page.locator(".toast-body")).to_have_count(0)
    page.locator("#grounding-prompt textarea").fill("draw a red box around the blue square")
    page.locator("#grounding-draw").click()
    assert drawn(page, "grounding").shape == (256, 256, 3)
    expect(notes).not_to_contain_text("Not generated")
    expect(page.locator("#grounding-settings")).to_be_enabled()


def test_a_refusal_takes_the_last_picture_back_and_stays_to_be_read(page: Page, tmp_path: Path) -> None:
    page.get_by_role("tab", name="grounding").click()
    page.locator("#grounding-try").click()
    expect(page.locator("#grounding-image img")).to_be_visible()
    expect(page.locator("#grounding-prompt textarea")).to_have_value(re.compile("cover the"))
    page.locator("#grounding-draw").click()
    drawn(page, "grounding")
    page.locator("#grounding-seed input").fill("1.5")
    page.locator("#grounding-draw").click()
    said = page.locator("#grounding-notes textarea")
    expect(said).to_have_value(re.compile("the seed must be a whole number .* got 1.5"))
    expect(page.locator("#grounding-result img")).to_have_count(0)
    expect(page.locator("#grounding-settings")).to_be_disabled()
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)
    keep(page, "refusal", tmp_path)


def test_a_tab_that_is_closed_while_drawing_keeps_nobody_waiting(
    page: Page, browser: Browser, address: str, photo: Path
) -> None:
    for number in range(2):  # one draws, one waits
        leaving = browser.new_context().new_page()
        leaving.goto(address)
        open_tab(leaving, "grounding", photo, "draw a red box around the blue square")
        leaving.locator("#grounding-steps input").first.fill("100")
        leaving.locator("#grounding-seed input").fill(str(number))
        leaving.locator("#grounding-draw").click()
        expect(leaving.locator("#grounding-result")).to_contain_text(re.compile("processing|queue|s"))
        leaving.context.close()
    open_tab(page, "grounding", photo, "draw a red box around the blue square")
    page.locator("#grounding-draw").click()
    assert drawn(page, "grounding").shape == (256, 256, 3)


def test_the_map_that_control_reads_is_shown(page: Page, photo: Path, tmp_path: Path) -> None:
    words = "canny edge to image red circle top left and blue square bottom right on gray"
    open_tab(page, "control", photo, words)
    page.get_by_label("canny").check()
    seen = page.locator("#control-seen img")
    expect(seen).to_be_visible()
    page.locator("#control-draw").click()
    picture = drawn(page, "control")
    keep(page, "control", tmp_path)
    assert np.array_equal(by_command(settings_of(page, "control", tmp_path)), picture)


def test_two_windows_at_once_get_each_their_own(
    page: Page, browser: Browser, address: str, photo: Path, tmp_path: Path
) -> None:
    other = browser.new_context().new_page()
    other.goto(address)
    windows = {"1": page, "2": other}
    for seed, window in windows.items():
        open_tab(window, "editing", photo, "make the red circle blue")
        window.locator("#editing-seed input").fill(seed)
        window.get_by_label("full pool").last.check()
    for window in windows.values():
        window.locator("#editing-draw").click()
    for seed, window in windows.items():
        picture = drawn(window, "editing")
        (tmp_path / seed).mkdir()
        settings = settings_of(window, "editing", tmp_path / seed)
        assert json.loads(settings.read_text())["settings"]["seed"] == int(seed)
        assert np.array_equal(by_command(settings), picture)
    keep(page, "editing", tmp_path)
    other.context.close()


def faults_of(page: Page) -> list[str]:
    """Collect what goes wrong on a page from now on: refused or failed requests, errors of its scripts."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)

    def answered(response: Response) -> None:
        if response.status >= 400:
            faults.append(f"{response.status} {response.url}")

    def failed(request: Request) -> None:
        # The page itself closes a stream of answers, and leaves a download to the browser.
        if request.failure != "net::ERR_ABORTED":
            faults.append(f"{request.failure} {request.url}")

    page.on("response", answered)
    page.on("requestfailed", failed)
    return faults


def clickable(page: Page) -> list[Locator]:
    """All that is visible on the open tab and can be clicked but *Draw*, which the test presses itself.

    What takes a picture away comes last.
    """
    tab = page.locator("[role=tabpanel]:visible")
    found = tab.locator("button:visible, input[type=radio]:visible, input[type=range]:visible")
    last = ("Remove Image", "Clear canvas", "Clear")
    each = [one for one in found.all() if one.is_enabled() and one.inner_text() != "Draw"]
    return sorted(each, key=lambda one: (one.get_attribute("aria-label") or "") in last)


def test_all_that_can_be_clicked_answers(browser: Browser, address: str) -> None:
    context = browser.new_context(
        viewport={"width": 1280, "height": 1400},
        accept_downloads=True,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    faults = faults_of(page)
    page.goto(address)
    tabs = page.get_by_role("tab")
    expect(tabs.first).to_be_visible()
    for task in tabs.all_inner_texts():
        page.get_by_role("tab", name=task).click()
        page.locator(f"#{task}-try").click()
        expect(page.locator(f"#{task}-image img")).to_be_visible()
        offered = page.locator("button.gallery-item:visible")
        for prompt in offered.all_inner_texts():
            offered.get_by_text(prompt, exact=True).click()
            expect(page.locator(f"#{task}-prompt textarea")).to_have_value(prompt)
        page.locator(f"#{task}-draw").click()
        drawn(page, task)
        expect(page.locator(f"#{task}-settings")).to_be_enabled()
        for one in [each.element_handle() for each in clickable(page)]:
            if one.is_visible() and one.is_enabled():
                one.click(timeout=10_000, force=True)
                page.wait_for_timeout(200)
                page.keyboard.press("Escape")  # of a menu that opened
        assert faults == [], task
    page.get_by_role("button", name="Words that it reads").click()
    assert faults == []
    context.close()
