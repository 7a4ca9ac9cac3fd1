"""The page as gradio is told of it: no way round the limits, nothing that leaves the machine."""

import asyncio
import base64
import io
import os
import re
import runpy
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import gradio as gr
import pytest
from PIL import Image as PilImage
from starlette.exceptions import HTTPException

from recipes.cologen.app.__main__ import main
from recipes.cologen.app.address import AddressError
from recipes.cologen.app.answers import A_MAP, Answers
from recipes.cologen.app.limits import FLATTENED, Limits
from recipes.cologen.app.page import NOTES, REFUSED, build_page, in_words
from recipes.cologen.app.serving import serve
from recipes.cologen.app.uploads import MOST_BLOBS, Upload, only_read_here
from recipes.cologen.errors import PictureError
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import read_settings
from recipes.cologen.runs.reader import RunReader


@pytest.fixture(scope="module")
def page(finished_run: Path) -> gr.Blocks:
    async def built() -> gr.Blocks:  # outside a loop gradio makes some of its own, and never closes them
        return build_page(Answers(GenerationSession(RunReader(finished_run)), Limits(waiting=3)))

    return asyncio.run(built())


def test_there_is_a_tab_for_every_task_of_the_run(page: gr.Blocks, finished_run: Path) -> None:
    tabs = [block.id for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == list(RunReader(finished_run).settings.stage_names)


def test_a_tab_has_one_button_for_settings_and_no_other_download(page: gr.Blocks) -> None:
    buttons = [block for block in page.blocks.values() if isinstance(block, gr.DownloadButton)]
    assert [block.label for block in buttons] == ["Settings of this picture"] * 4


def test_nothing_is_shared_and_nothing_is_an_api(page: gr.Blocks) -> None:
    config = page.get_config_file()
    assert all("share" not in (part["props"].get("buttons") or []) for part in config["components"])
    pictures = [part for part in config["components"] if part["type"] in ("image", "imageeditor")]
    assert pictures and all(part["props"].get("buttons") is not None for part in pictures)
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])
    assert config["analytics_enabled"] is False and config["enable_queue"]


def test_one_picture_at_a_time_is_drawn_and_few_wait(page: gr.Blocks) -> None:
    drawing = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert len(drawing) == 4 and all(fn.concurrency_limit == 1 for fn in drawing)
    assert page._queue.max_size == 3


def test_pictures_reach_events_only_through_the_limits(page: gr.Blocks) -> None:
    given = [block for block in page.blocks.values() if str(block.elem_id).endswith(("-image", "-easel"))]
    assert len(given) == 5
    assert all(isinstance(block.preprocess(None), Upload) for block in given)
    with pytest.raises(TypeError, match="not within the limits"):
        only_read_here("/etc/passwd")


def test_parts_of_drawings_are_bounded(page: gr.Blocks) -> None:
    (easel,) = (block for block in page.blocks.values() if str(block.elem_id).endswith("-easel"))
    part = SimpleNamespace(data={"type": "layer", "index": "0", "id": "first"}, files=[("file", b"x")])
    easel.accept_blobs(part)
    for index in ("1000000000", "-1", "8", "x"):
        part.data["index"] = index
        with pytest.raises(HTTPException, match="at most 8 layers"):
            easel.accept_blobs(part)
    part.data["index"] = "0"
    for number in range(MOST_BLOBS):
        part.data["id"] = str(number)
        easel.accept_blobs(part)
    assert len(easel.blob_storage) == MOST_BLOBS and "first" not in easel.blob_storage


def test_refusals_are_words_that_stay_and_faults_are_no_tracebacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(prompt: str) -> tuple[str]:
        raise PictureError(f"no <b>hole</b> in {prompt!r}: paint one")

    def fail() -> tuple[str]:
        raise KeyError("secret")

    picture, noted = in_words(refuse, (None,))("red circle " * 90)
    assert picture is None and noted.label == REFUSED
    assert noted.value.startswith("no <b>hole</b> in 'red circle") and noted.value.endswith("...': paint one")
    assert len(noted.value) < 110
    failed = in_words(fail, ())()
    assert "secret" not in failed.value and "KeyError" in failed.value and failed.label == REFUSED
    assert "secret" in caplog.text
    assert in_words(lambda: (1, "fine"), (None,))()[1].label == NOTES


def test_an_event_that_is_refused_takes_back_the_last_picture_and_its_settings(page: gr.Blocks) -> None:
    (draw,) = (fn for fn in page.fns.values() if fn.concurrency_id == "model" and len(fn.inputs) == 9)
    picture, shares, download, noted = draw.fn(
        Upload(None), A_MAP, "", 0, 1, 1, "", "inpainting", Upload(None)
    )
    assert picture is None and shares is None
    assert download["value"] is None and download["interactive"] is False
    assert noted.label == REFUSED and "upload one first" in noted.value


def test_what_is_transparent_is_drawn_as_white_and_noted_before_and_after(
    page: gr.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gr, "DownloadButton", lambda **given: SimpleNamespace(**given))  # copies its file
    path = tmp_path / "through.png"
    PilImage.new("RGBA", (32, 32), (9, 9, 9, 0)).save(path)
    (place,) = (block for block in page.blocks.values() if block.elem_id == "grounding-image")
    read = place.preprocess(SimpleNamespace(path=str(path)))
    looks = [fn for fn in page.fns.values() if fn.inputs[:1] == [place] and fn.concurrency_id != "model"]
    (draw,) = (fn for fn in page.fns.values() if place in fn.inputs and fn.concurrency_id == "model")
    assert [look.fn(read, A_MAP).value for look in looks] == [FLATTENED]
    prompt = "draw a red box around the blue square"
    *_, download, noted = draw.fn(read, A_MAP, prompt, 0, 1, 1, "", "grounding")
    assert noted.value.startswith(FLATTENED) and noted.label == NOTES
    kept = read_settings(Path(download.value)).image
    with PilImage.open(io.BytesIO(base64.b64decode(kept))) as opened:
        assert opened.getextrema() == ((255, 255),) * 3


def test_no_field_is_checked_by_gradio_whose_words_name_none(page: gr.Blocks) -> None:
    fields = [block for block in page.blocks.values() if isinstance(block, gr.Number | gr.Slider | gr.Radio)]
    assert len(fields) == 5 * 4
    assert all(block.preprocess(-3.5) == -3.5 for block in fields)


def test_what_cannot_be_read_is_refused_where_refusals_are_read(page: gr.Blocks, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    for block in (one for one in page.blocks.values() if str(one.elem_id).endswith("-image")):
        read = block.preprocess(SimpleNamespace(path=str(bad)))
        assert read.image is None and "not a picture" in read.refusal
        with pytest.raises(PictureError, match="not a picture"):
            only_read_here(read)


def test_the_page_says_what_the_run_is_and_which_words_it_reads(page: gr.Blocks) -> None:
    said = "\n".join(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))
    assert "pictures of 16x16 pixels" in said and "fake &lt;run&gt;" in said
    assert all(re.search(rf"\b{word}\b", said) for word in ("purple", "triangle", "navy", "canny", "and"))


def test_the_command_refuses_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path)]) == 1
    assert re.search(r"^error: .* is not a training run", capsys.readouterr().err)


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http", "²"])
def test_a_port_that_there_is_not_is_refused_by_the_parser(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--checkpoint", "runs/none", f"--port={port}"])
    assert stopped.value.code == 2 and "expected a port from 1 to 65535" in capsys.readouterr().err


def test_a_taken_port_or_a_foreign_host_is_said_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--checkpoint", "runs/none", "--port", str(port)]) == 1
    assert f"error: port {port} is taken on 127.0.0.1; give another with --port" in capsys.readouterr().err
    assert main(["--checkpoint", "runs/none", "--host", "192.0.2.1"]) == 1
    assert "error: --host 192.0.2.1 is no address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(("port", "words"), [(7871, "port 7871"), (None, "no port from 7860 on is free")])
def test_a_port_taken_meanwhile_is_said_without_a_variable_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, port: int | None, words: str
) -> None:
    def launch(**_: object) -> None:
        raise OSError("Cannot find empty port; set the GRADIO_SERVER_PORT environment variable")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", PilImage.MAX_IMAGE_PIXELS)
    monkeypatch.setattr("recipes.cologen.app.serving.Answers", lambda *_: None)
    monkeypatch.setattr("recipes.cologen.app.serving.build_page", lambda _: SimpleNamespace(launch=launch))
    with pytest.raises(AddressError) as refused:
        serve(cast(GenerationSession, None), Limits(), "127.0.0.1", port, print)
    assert words in str(refused.value) and "GRADIO" not in str(refused.value)


def test_another_host_is_a_choice_with_a_notice(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr("recipes.cologen.app.__main__.serve", lambda *values: asked.append(values[2:4]))
    assert main(["--checkpoint", str(finished_run)]) == 0
    assert "note" not in capsys.readouterr().err
    assert main(["--checkpoint", str(finished_run), "--host", "0.0.0.0", "--port", "99"]) == 0
    assert "others may reach it" in capsys.readouterr().err
    assert asked == [("127.0.0.1", None), ("0.0.0.0", 99)]


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for module in ("__main__", "serving", "page", "uploads"):
        monkeypatch.delitem(sys.modules, f"recipes.cologen.app.{module}", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'prw\[app\]'"):
        runpy.run_module("recipes.cologen.app")
