"""gradio's picture components, made to read uploads only through limits.py.

A component's own reading is replaced on the object, not by a subclass: gradio writes a stub file beside
every module that subclasses a component.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image as PilImage
from starlette.exceptions import HTTPException

from recipes.cologen.app.answers import SHOWN_PIXELS, joined, shown
from recipes.cologen.app.limits import Limits, read_strokes, read_upload
from recipes.cologen.data.record import Image
from recipes.cologen.errors import PictureError

MOST_BLOBS = 256
"""Parts of drawings that may wait for their call, of all users together."""
MOST_LAYERS = 8
EASEL_PIXELS = 1024
"""Longest side of a picture on the easel; masks are brought to the model's size anyway."""
PAINT = "#ff2fd0"
"""Colour of the brush: one that few pictures have, since only where it was matters."""


class Upload(NamedTuple):
    """What an event gets: a picture or a mask that was read here, and by nobody else."""

    image: Image | None
    notice: str = ""
    """What reading it took."""
    refusal: str = ""
    """Why it was not read."""


def upload(limits: Limits, name: str) -> Any:
    """A place for a picture."""
    # PNG: what the page itself puts here (an example) must come back as it was.
    component = gr.Image(
        label="Picture", sources=["upload", "clipboard"], elem_id=name, buttons=[], format="png"
    )
    component.elem_classes = ["cologen-picture"]

    def preprocess(payload: Any) -> Upload:
        if payload is None:
            return Upload(None)
        try:
            return Upload(*read_upload(Path(payload.path), limits))
        except PictureError as error:
            return Upload(None, refusal=str(error))

    component.preprocess = preprocess
    return component


def unchecked(component: Any) -> Any:
    """A field whose value goes on as it was sent: gradio's own check names no field, and fills the log.

    answers.py checks every value, and refuses in words.
    """
    component.preprocess = lambda payload: payload
    return component


def easel(limits: Limits, name: str) -> Any:
    """A place to paint a mask, over a picture that the page puts there; events get the mask."""
    component = gr.ImageEditor(
        label="Paint over what is to be filled in",
        placeholder="A copy of the picture comes here, to paint on",
        sources=(),
        elem_id=name,
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=40, colors=[PAINT], color_mode="fixed", default_color=PAINT),
        eraser=gr.Eraser(default_size=40),
        canvas_size=(SHOWN_PIXELS, SHOWN_PIXELS),
        format="png",
        buttons=[],
    )

    def convert(file: Any, flatten_on_white: bool = False) -> Image | None:
        if file is None or flatten_on_white:  # the picture below the strokes: the page has it already
            return None
        held = bytes(file) if isinstance(file, bytes | bytearray | memoryview) else Path(file.path)
        return read_strokes(held, limits)

    gather = component.preprocess

    def preprocess(payload: Any) -> Upload:
        try:
            found = gather(payload)
        except PictureError as error:
            return Upload(None, refusal=str(error))
        return Upload(None if found is None else joined(found["layers"]))

    component.convert_and_format_image = convert
    component.preprocess = preprocess
    component.accept_blobs = _bounded(component)
    return component


def on_easel(picture: Image | None) -> dict[str, Any] | None:
    """What the easel shows of a picture: large enough to be painted on, small enough to be sent about."""
    if picture is None:
        return None
    small = PilImage.fromarray(shown(picture))
    small.thumbnail((EASEL_PIXELS, EASEL_PIXELS))
    return {"background": np.asarray(small), "layers": [], "composite": None}


def only_read_here(given: Any) -> Upload:
    """An upload; refuses what did not come through this module.

    gradio makes a component anew when an event returns an update of it (`gr.update`, `gr.skip`), and what
    was replaced on the object is lost; so the page returns plain values, and this would tell.

    Raises:
        PictureError: It could not be read.
    """
    if not isinstance(given, Upload):
        raise TypeError(f"a picture was read by gradio ({type(given).__name__}), not within the limits")
    if given.refusal:
        raise PictureError(given.refusal)
    return given


def _bounded(component: Any) -> Any:
    """The editor's own way of taking parts of a drawing, which a caller could make hold anything."""
    take = component.accept_blobs

    def accept_blobs(data: Any) -> Any:
        index, held = data.data.get("index"), component.blob_storage
        if index not in (None, "", "null") and str(index) not in map(str, range(MOST_LAYERS)):
            raise HTTPException(400, f"a drawing has at most {MOST_LAYERS} layers.")
        if len(held) >= MOST_BLOBS and data.data["id"] not in held:
            held.pop(next(iter(held)))  # the oldest was never called for
        return take(data)

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    return accept_blobs
