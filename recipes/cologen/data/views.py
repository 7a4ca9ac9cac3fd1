"""The five views by name: each a pure function from a record and a seed to an example."""

from __future__ import annotations

from collections.abc import Callable

from recipes.cologen.data.control import control
from recipes.cologen.data.customization import customization
from recipes.cologen.data.editing import editing
from recipes.cologen.data.grounding import grounding
from recipes.cologen.data.inpainting import inpainting
from recipes.cologen.data.record import Example, Record

View = Callable[[Record, int], Example]

VIEWS: dict[str, View] = {
    "inpainting": inpainting,
    "grounding": grounding,
    "control": control,
    "customization": customization,
    "editing": editing,
}
"""In the order of CoLoGen's stages."""
