"""HED and line art by controlnet_aux's detectors, in batches on the training device; an extra, `annotators`.

A detector's own call takes one picture, brings it to a multiple of 64 pixels and leaves the device in
between; here its network is called as the detector does, on whole batches at their own size.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.data.annotators.transformer_models import check_maps, hash_weights
from recipes.cologen.errors import AnnotatorError

_DETECTORS = {"soft_edge": "HEDdetector", "lineart": "LineartDetector"}
_LINEART_SIDES = 4
"""Line art's network halves a picture twice and doubles it again."""


class DetectorAnnotator:
    """HED's soft edges, or line art; both white on black.

    Args:
        map_kind: `soft_edge` or `lineart`.
        settings: Where the weights lie (`lllyasviel/Annotators` on the hub), precision, `coarse`.
        device: Where it runs.

    Raises:
        AnnotatorError: controlnet_aux is not installed, or the weights are not there.
    """

    def __init__(self, map_kind: str, settings: AnnotatorSettings, device: torch.device) -> None:
        """Load the detector's network, frozen; see the class."""
        self.map_kind, self._settings = map_kind, settings
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        detector = _detector(map_kind, settings)
        self._coarse = bool(settings.resolved_options(map_kind).get("coarse"))
        if map_kind == "soft_edge":
            network: nn.Module = detector.netNetwork
        else:
            network = detector.model_coarse if self._coarse else detector.model
        self.network = network.requires_grad_(False).eval().to(device, self._dtype)
        told = f"{_DETECTORS[map_kind]}{self._coarse}{self._dtype}{hash_weights(network.state_dict())}"
        self._fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def needs(self) -> str:
        """What it cannot work without."""
        return f"{_DETECTORS[self.map_kind]} of controlnet_aux with the weights of {self._settings.path}"

    def fingerprint(self) -> str:
        """Short hash of the detector, its weights and its precision."""
        return self._fingerprint

    @torch.no_grad()
    def annotate(self, pixels: Tensor) -> Tensor:
        """Edges or lines at the pictures' own size.

        Raises:
            AnnotatorError: As `check_maps`.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            values = self._soft_edges(pixels) if self.map_kind == "soft_edge" else self._lines(pixels)
        check_maps(values, self.map_kind, self._settings)
        # Cut off, not rounded, as the detectors do.
        return (255 * values).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)

    def _soft_edges(self, pixels: Tensor) -> Tensor:
        """Mean of the five depths' edges, squashed to 0..1: [batch, 1, height, width]."""
        size = pixels.shape[-2:]
        edges = [edge.float() for edge in self.network(pixels.to(self._dtype))]
        grown = [F.interpolate(edge, size, mode="bilinear", align_corners=False) for edge in edges]
        return torch.stack(grown).mean(0).sigmoid()

    def _lines(self, pixels: Tensor) -> Tensor:
        """Lines white on black, 0..1: [batch, 1, height, width]; the network itself draws dark on white."""
        height, width = pixels.shape[-2:]
        below, beside = -height % _LINEART_SIDES, -width % _LINEART_SIDES
        padded = F.pad(pixels.to(self._dtype) / 255, (0, beside, 0, below), mode="replicate")
        lines: Tensor = self.network(padded)[..., :height, :width].float()
        return 1 - lines


def _detector(map_kind: str, settings: AnnotatorSettings) -> Any:
    """The detector with its weights.

    Raises:
        AnnotatorError: As the class.
    """
    name = _DETECTORS[map_kind]
    try:
        import controlnet_aux
    except ImportError as error:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {name} is of controlnet_aux, which cannot be imported ({error})."
            " Run: pip install 'prw[annotators]'; or make it without a network (kind: opencv)"
        ) from error
    try:
        return getattr(controlnet_aux, name).from_pretrained(str(settings.path))
    except (OSError, ValueError, RuntimeError) as error:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {name} finds no weights at {settings.path} ({error}). They are "
            "published as lllyasviel/Annotators; give that name, or a folder with its files"
        ) from error
