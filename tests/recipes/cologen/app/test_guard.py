"""The door in front of gradio: what gets through, what does not, and how much of it."""

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pytest
from gradio.routes import App
from PIL import Image

from recipes.cologen.app.guard import FORM_BYTES, Guard, Message, Receive, Scope, Send
from recipes.cologen.app.limits import Limits

LIMITS = Limits(upload_bytes=3000, pixels=10_000)
JOIN = "/gradio_api/queue/join"


class Got(NamedTuple):
    status: int
    words: str
    headers: dict[bytes, bytes]
    inside: bytes | None
    """The body that reached gradio; None when nothing did."""


def ask(
    folder: Path, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Got:
    """Send one request through the guard, its body in two parts."""
    sent: list[Message] = []
    inside: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.append((await receive())["body"] if method == "POST" else b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    parts = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(key.encode(), value.encode()) for key, value in given.items()],
    }
    guard = Guard(app, limits=LIMITS, uploads=folder, names=frozenset({"127.0.0.1", "localhost"}))
    asyncio.run(guard(scope, receive, send))
    words = b"".join(message.get("body", b"") for message in sent).decode()
    return Got(sent[0]["status"], words, dict(sent[0]["headers"]), inside[0] if inside else None)


def call(folder: Path, *data: Any) -> Got:
    return ask(folder, "POST", JOIN, json.dumps({"data": data, "fn_index": 1}).encode())


def form(folder: Path, *files: bytes) -> Got:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + file + b"\r\n"
        for file in files
    ]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return ask(folder, "POST", "/gradio_api/upload", b"".join([*parts, b"--x--\r\n"]), headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/assets/index-a1_B.js"),
        ("GET", "/gradio_api/heartbeat/abc"),
        ("POST", JOIN),
    ],
)
def test_what_the_page_needs_gets_through_with_a_policy(tmp_path: Path, method: str, path: str) -> None:
    got = ask(tmp_path, method, path, b"{}")
    assert got.status == 200 and got.inside is not None
    assert b"default-src 'self'" in got.headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/gradio_api/file=http://example.org/x.png"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file={folder}/../../../../../../etc/passwd"),
        ("GET", "/gradio_api/file={folder}/link"),
        ("GET", "/assets/%2e%2e/x"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/run/draw"),
        ("POST", "/gradio_api/call/draw"),
        ("POST", "/gradio_api/vibe-edit"),
        ("DELETE", "/"),
        ("PUT", JOIN),
    ],
)
def test_what_the_page_does_not_need_is_not_there(tmp_path: Path, method: str, path: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    got = ask(tmp_path, method, path.format(folder=tmp_path))
    assert (got.status, got.inside) == (404, None)


def test_an_uploaded_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert ask(tmp_path, "GET", f"/gradio_api/file={tmp_path}/a.png").status == 200


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example:7860"}, {"origin": "http://evil.example"}, {"origin": "null"}]
)
def test_foreign_names_and_pages_are_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    assert ask(tmp_path, "POST", JOIN, b"{}", headers).status == 403
    assert ask(tmp_path, "POST", JOIN, b"{}", {"origin": "http://127.0.0.1:7860"}).status == 200


@pytest.mark.parametrize(
    "data",
    [
        {"path": "/etc/passwd"},
        {"path": "http://example.org/x.png"},
        {"path": "file:///etc/passwd"},
        {"path": None},
        {"path": "a\0b"},
        [{"deep": [{"path": "../x"}]}],
        {"url": "data:image/png;base64,AAAA"},
    ],
)
def test_a_call_names_no_file_but_uploads(tmp_path: Path, data: Any) -> None:
    got = call(tmp_path, data, "words")
    assert (got.status, got.inside) == (400, None) and "not uploaded" in got.words


def test_words_may_say_anything_and_uploads_may_be_named(tmp_path: Path) -> None:
    upload = {"path": str(tmp_path / "a.png"), "url": "http://127.0.0.1:7860/gradio_api/file=a.png"}
    got = call(tmp_path, "http://example.org /etc/passwd", upload)
    assert got.status == 200 and got.inside is not None and b"example.org" in got.inside
    assert ask(tmp_path, "POST", JOIN, b"no JSON").status == 400


def test_a_picture_is_taken_whole_and_anything_else_is_refused_in_words(tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(held, "PNG")
    taken = form(tmp_path, held.getvalue())
    assert taken.status == 200 and taken.inside is not None and held.getvalue() in taken.inside
    for files, message in (((b"text",), "not a picture"), ((held.getvalue(),) * 2, "one file at a time")):
        refused = form(tmp_path, *files)
        assert (refused.status, refused.inside) == (400, None) and message in refused.words


def test_a_body_without_end_is_cut_off_whatever_its_header_says(tmp_path: Path) -> None:
    body = b"[" + b" " * (LIMITS.upload_bytes + FORM_BYTES) + b"]"
    got = ask(tmp_path, "POST", JOIN, body, {"content-length": "2"})
    assert (got.status, got.inside) == (413, None)
    assert ask(tmp_path, "POST", JOIN, body[:-10] + b"]").status == 200


OPEN_ROUTES = {
    "GET": {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/assets/{path:path}",
        "/static/{path:path}",
        "/svelte/{path:path}",
        "/gradio_api/info",
        "/gradio_api/startup-events",
        "/gradio_api/app_id",
        "/gradio_api/queue/data",
        "/gradio_api/upload_progress",
        "/gradio_api/heartbeat/{session_hash}",
        "/gradio_api/theme.css",
    },
    "POST": {
        "/gradio_api/queue/join",
        "/gradio_api/run/{api_name}",  # as `predict` alone: how the client sends events that are not queued
        "/gradio_api/upload",
        "/gradio_api/component_server",
        "/gradio_api/reset",
        "/gradio_api/cancel",
    },
}
"""Routes of gradio that its client needs on a page of pictures, buttons and text."""
CLOSED_ROUTES = {
    "accounts; the page asks nobody who they are": (
        *("/login", "/logout", "/gradio_api/user", "/gradio_api/login_check", "/gradio_api/token"),
    ),
    "an API; every event of the page is private": (
        *("/gradio_api/api/{api_name}", "/gradio_api/call/{api_name}", "/gradio_api/call/v2/{api_name}"),
        *("/gradio_api/call/{api_name}/{event_id}", "/gradio_api/call/v2/{api_name}/{event_id}"),
        *("/gradio_api/openapi.json", "/openapi.json", "/gradio_api/queue/status"),
    ),
    "monitoring, and what was run": (
        *("/monitoring", "/monitoring/summary", "/monitoring/{key}", "/gradio_api/runs"),
        *("/gradio_api/run-history/connect", "/gradio_api/run-history/buckets"),
        *("/gradio_api/run-history/records",),
        "/gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}",
    ),
    "developing": (
        *("/gradio_api/dev/reload", "/gradio_api/vibe-edit", "/gradio_api/undo-vibe-edit"),
        *("/gradio_api/vibe-code", "/gradio_api/vibe-starter-queries"),
    ),
    "files by their address, and other servers'": (
        *("/gradio_api/proxy={url_path:path}", "/gradio_api/file/{path:path}"),
        "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
    ),
    "sound and video": (
        *("/gradio_api/stream/{event_id}", "/gradio_api/stream/{event_id}/close"),
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
        "/gradio_api/process_recording",
    ),
    "an installed page, search engines, links to a state": (
        *("/pwa_icon", "/pwa_icon/{size}", "/robots.txt", "/gradio_api/deep_link"),
    ),
    "an upload, which is asked for by its own file": ("/gradio_api/file={path_or_url:path}",),
}
"""Routes that the page does without, by what they are for."""


def gradio_routes() -> set[tuple[str, str]]:
    """Method and path of every route that gradio serves, without a slash at the end."""

    async def made() -> list[Any]:  # outside a loop gradio makes some of its own, and never closes them
        with gr.Blocks() as page:
            gr.Textbox()
        return list(App.create_app(page).routes)

    waiting = asyncio.run(made())
    found: set[tuple[str, str]] = set()
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        path = getattr(route, "path", None)
        found |= {(method, path.rstrip("/") or "/") for method in getattr(route, "methods", None) or ()}
    return found


def asked_for(path: str) -> str:
    """A path as the client asks for it."""
    return re.sub(r"\{\w+(:path)?\}", "predict", path)


def test_every_route_of_gradio_is_open_or_closed_on_purpose(tmp_path: Path) -> None:
    closed = {path for paths in CLOSED_ROUTES.values() for path in paths}
    routes = gradio_routes()
    assert {path for _, path in routes} == closed.union(*OPEN_ROUTES.values())
    for method, path in sorted(routes):
        wanted = path in OPEN_ROUTES["GET" if method == "HEAD" else method]
        answered = ask(tmp_path, method, asked_for(path), b"{}").status
        assert (answered == 200) == wanted, (method, path)


def test_an_event_outside_the_queue_names_no_file_either(tmp_path: Path) -> None:
    body = json.dumps({"data": [{"path": "/etc/passwd"}], "fn_index": 1}).encode()
    assert ask(tmp_path, "POST", "/gradio_api/run/predict", body).status == 400
    assert ask(tmp_path, "POST", "/gradio_api/run/predict", b'{"data": ["words"]}').status == 200
