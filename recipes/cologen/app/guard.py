"""Guards gradio: routes that the page does not need are closed, and requests are limited in size.

gradio serves more than this page uses: a proxy, files by URL, an API, monitoring. The guard lets through
what is listed here, bounds every body, refuses calls that name files which were not uploaded, and forbids
the browser to ask any other host for anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from recipes.cologen.app.limits import Limits, read_rgb
from recipes.cologen.errors import PictureError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
"""Where the page says which button was pressed, with what. The second takes only events that gradio itself
leaves out of the queue, such as a click on an offered prompt; it refuses the others."""
UPLOADS = "/gradio_api/upload"
FILES = "/gradio_api/file="
OPEN = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/[\w./-]+"
        r"|/gradio_api/(info|startup-events|app_id|queue/data|upload_progress|heartbeat/\w+|theme\.css)"
        r"|/gradio_api/file=.+"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|run/predict|upload|component_server|reset|cancel)"),
}
OPEN["HEAD"] = OPEN["GET"]
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
FORM_BYTES = 2**16
"""What a form adds to the file in it."""


class Guard:
    """ASGI middleware; a refusal is a line of plain text."""

    def __init__(self, app: App, *, limits: Limits, uploads: Path, names: frozenset[str] | None) -> None:
        """Stand in front of an app.

        Args:
            app: gradio's.
            limits: What is taken from users.
            uploads: The folder that uploads lie in; calls may name no file elsewhere.
            names: What the server may be called in `Host`, so that no foreign name can be pointed at a page
                on loopback; None takes any.
        """
        self.app, self.limits, self.uploads, self.names = app, limits, uploads.resolve(), names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refused(scope)
        if refusal is None and scope["method"] == "POST":
            body = await self._body(receive)
            if body is None:
                most = self.limits.upload_bytes / 2**20
                refusal = 413, f"more than {most:.1f} MiB were sent; that is not taken."
            else:
                refusal = await self._unwanted(scope, body)
                receive = _replayed(body, receive)
        if refusal is None:
            await self.app(scope, receive, _with_policy(send))
        else:
            await _say(send, *refusal)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        allowed = OPEN.get(scope["method"])
        path = scope["path"]
        if allowed is None or not allowed.fullmatch(path):
            return 404, "there is no such thing on this page."
        if path.startswith(FILES) and not self._is_upload(path.removeprefix(FILES)):
            return 404, "there is no such file on this page."
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.names is not None and _name_of(host) not in self.names:
            return 403, f"this page is on loopback and is not called {host!r}."
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            return 403, "another page's requests are not taken."
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None when it is too long, of which no more is read."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.upload_bytes + FORM_BYTES:
                return None
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    async def _unwanted(self, scope: Scope, body: bytes) -> tuple[int, str] | None:
        """Look into a body: an upload must be a picture, a call may name no other file."""
        if scope["path"] in CALLS and not self._names_only_uploads(body):
            return 400, "a file was named that was not uploaded to this page."
        if scope["path"] == UPLOADS:
            try:
                request = Request(scope, _replayed(body, _nothing))
                async with request.form(max_files=1, max_fields=1) as form:
                    for file in form.values():
                        held = file.encode() if isinstance(file, str) else await file.read()
                        await to_thread.run_sync(read_rgb, held, self.limits)
            except (HTTPException, MultiPartException):
                return 400, "one file at a time is taken."
            except PictureError as error:
                return 400, str(error)
        return None

    def _names_only_uploads(self, body: bytes) -> bool:
        try:
            sent = json.loads(body)
        except ValueError:
            return False
        return all(self._is_upload(path) for path in _paths(sent))

    def _is_upload(self, path: object) -> bool:
        # resolve() follows links and "..": what counts is where the file truly is
        return (
            isinstance(path, str) and "\0" not in path and Path(path).resolve().is_relative_to(self.uploads)
        )


def _paths(sent: object) -> Iterator[object]:
    """Everything in a call that gradio would take for a file: a path, or a picture inside a URL."""
    if isinstance(sent, dict):
        if "path" in sent:
            yield sent["path"]
        if str(sent.get("url") or "").lstrip().startswith("data:"):
            yield None
        for value in sent.values():
            yield from _paths(value)
    elif isinstance(sent, list):
        for value in sent:
            yield from _paths(value)


def _name_of(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d+$", "", host).lower()


def _replayed(body: bytes, after: Receive) -> Receive:
    """A `receive` that gives the body once, then whatever comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else await after()

    return receive


def _with_policy(send: Send) -> Send:
    """A `send` that tells the browser to ask nobody else for anything."""
    more = [
        (b"content-security-policy", POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _say(send: Send, status: int, words: str) -> None:
    body = words.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
