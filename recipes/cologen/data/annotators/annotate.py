"""The annotators of a run, loaded: they make the control maps that sources of a batch still wait for."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.data.annotators.annotator import Annotator
from recipes.cologen.data.annotators.detectors import DetectorAnnotator
from recipes.cologen.data.annotators.opencv import OPENCV_MAPS, OpenCvAnnotator, open_cv
from recipes.cologen.data.annotators.transformer_models import TransformersAnnotator
from recipes.cologen.data.record import Example, Image
from recipes.cologen.errors import AnnotatorError


def _custom(map_kind: str, settings: AnnotatorSettings, device: torch.device) -> Annotator:
    """An annotator of the user's own: `module:name` is called as the entries of ANNOTATORS are.

    Raises:
        AnnotatorError: There is nothing of that name, or what it makes is no annotator.
    """
    try:
        made: Any = pkgutil.resolve_name(str(settings.path))(map_kind, settings, device)
    except (ImportError, AttributeError, ValueError) as error:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {settings.path!r} cannot be called ({error}); expected "
            "'module:name' of a callable that takes the map's kind, its settings and a device"
        ) from error
    lacking = [name for name in ("needs", "fingerprint", "annotate") if not hasattr(made, name)]
    if lacking:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {settings.path!r} made a {type(made).__name__} without "
            f"{', '.join(lacking)}; an annotator has map_kind, needs, fingerprint() and annotate(pixels)"
        )
    annotator: Annotator = made
    return annotator


ANNOTATORS: dict[str, Callable[[str, AnnotatorSettings, torch.device], Annotator]] = {
    "opencv": open_cv,
    "transformers": TransformersAnnotator,
    "controlnet_aux": DetectorAnnotator,
    "custom": _custom,
}
"""What makes an annotator, by `kind`: called with the map, its settings and the device."""


def worker_annotators(
    settings: Mapping[str, AnnotatorSettings],
) -> dict[str, OpenCvAnnotator | None]:
    """What a loader's worker may make itself, by map; None where the training device has to."""
    return {
        name: OpenCvAnnotator(name, chosen.options) if chosen.kind == "opencv" else None
        for name, chosen in settings.items()
    }


def annotate(
    picture: Image, name: str, settings: Mapping[str, AnnotatorSettings], device: torch.device
) -> Image:
    """The map of one picture, as training makes it: by the annotator that settings name, else by OpenCV.

    Raises:
        AnnotatorError: No annotator is named, and the map needs one; or it cannot be loaded.
    """
    if name not in settings and name not in OPENCV_MAPS:
        others = f" (only for {', '.join(settings)})" if settings else ""
        raise AnnotatorError(
            f"a {name} map needs a network, but data.annotators names none for it{others}. Give "
            "the map itself as the picture"
        )
    chosen = settings.get(name, AnnotatorSettings(kind="opencv"))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device)
    annotated = Annotators.load({name: chosen}, device).annotate(name, pixels)
    return to_picture(annotated[0])


def to_picture(pixels: Tensor) -> Image:
    """One picture of a batch, uint8 [3, height, width], as [height, width, 3]."""
    picture: Image = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    return picture


class Annotators:
    """Annotators by the map that they make."""

    def __init__(self, annotators: Mapping[str, Annotator] | None = None) -> None:
        """Take loaded annotators."""
        self._annotators = dict(annotators or {})

    @classmethod
    def load(cls, settings: Mapping[str, AnnotatorSettings], device: torch.device) -> Annotators:
        """Load what settings ask for.

        Raises:
            AnnotatorError: A network or a package is missing, or does not fit.
        """
        return cls({name: ANNOTATORS[one.kind](name, one, device) for name, one in settings.items()})

    def items(self) -> list[tuple[str, Annotator]]:
        """The annotators with the map that each makes."""
        return list(self._annotators.items())

    def annotate(self, name: str, pixels: Tensor) -> Tensor:
        """Maps of pictures, uint8 [batch, 3, height, width] as they.

        Raises:
            AnnotatorError: There is no such annotator, or what it makes is no such tensor.
        """
        if name not in self._annotators:
            raise AnnotatorError(
                f"an example waits for a {name!r} map, but the annotators loaded here are "
                f"{', '.join(self._annotators) or 'none'}; load those of the run's data.annotators"
            )
        annotated = self._annotators[name].annotate(pixels)
        if annotated.shape != pixels.shape or annotated.dtype != torch.uint8:
            raise AnnotatorError(
                f"the annotator of {name!r} made {annotated.dtype} {list(annotated.shape)}; expected "
                f"torch.uint8 {list(pixels.shape)}, like the pictures it was given"
            )
        return annotated

    def sources(self, pixels: Tensor, waiting: Sequence[str | None]) -> Tensor:
        """A batch's sources, those that wait for a map made from the picture that stands in their place.

        Args:
            pixels: uint8 [batch, 3, height, width], on the device.
            waiting: For each the map that it waits for; None for a source that is ready. Empty: all are.

        Raises:
            AnnotatorError: As `annotate`.
        """
        names = dict.fromkeys(name for name in waiting if name is not None)
        if not names:
            return pixels
        sources = pixels.clone()
        for name in names:
            rows = [row for row, other in enumerate(waiting) if other == name]
            sources[rows] = self.annotate(name, pixels[rows])
        return sources

    def complete(self, examples: Sequence[Example], device: torch.device) -> list[Example]:
        """Examples with all their sources; those that wait for a map get it, one after the other.

        Raises:
            AnnotatorError: As `annotate`.
        """
        return [
            example if example.annotator is None else self._completed(example, device) for example in examples
        ]

    def _completed(self, example: Example, device: torch.device) -> Example:
        pixels = torch.from_numpy(example.source).permute(2, 0, 1)[None].to(device)
        annotated = self.annotate(str(example.annotator), pixels)
        return replace(example, source=to_picture(annotated[0]), annotator=None)
