"""Depth and segmentation by transformers' models, in batches on the training device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForSemanticSegmentation
from transformers.utils import is_torchvision_available

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.data.class_colours import CLASS_COLOURS, CLASSES
from recipes.cologen.errors import AnnotatorError

NEAREST_IS_LARGEST = ("depth_anything", "dpt")
"""Depth models whose number grows towards the camera, as a control map's brightness does."""
_AUTO = {"depth": AutoModelForDepthEstimation, "segmentation": AutoModelForSemanticSegmentation}


class TransformersAnnotator:
    """A depth or segmentation model with its image processor.

    Args:
        map_kind: `depth` or `segmentation`.
        settings: Where the network lies, its precision.
        device: Where it runs.

    Raises:
        AnnotatorError: The folder holds no such network, or one whose output cannot be read.
    """

    def __init__(self, map_kind: str, settings: AnnotatorSettings, device: torch.device) -> None:
        """Load network and processor, frozen; see the class."""
        self.map_kind, self._settings = map_kind, settings
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        model, self._processor = _load(map_kind, settings)
        self._is_distance = False
        if map_kind == "depth":
            self._is_distance = _is_distance(model.config, settings)
        elif model.config.num_labels > CLASSES:
            raise AnnotatorError(
                f"data.annotators.segmentation: {settings.path} tells {model.config.num_labels} classes "
                f"apart, but at most {CLASSES} have colours of their own; take another network"
            )
        self.model: nn.Module = model.requires_grad_(False).eval().to(device, self._dtype)
        self._fingerprint = self._hash(model.config)

    @property
    def needs(self) -> str:
        """What it cannot work without."""
        return f"the network {self._settings.path} (transformers)"

    def fingerprint(self) -> str:
        """Short hash of weights, both configurations, precision and the processor's implementation."""
        return self._fingerprint

    @torch.no_grad()
    def annotate(self, pixels: Tensor) -> Tensor:
        """Depth with the nearest white, stretched over what occurs; or each class in its colour.

        Raises:
            AnnotatorError: As `check_maps`.
        """
        size = (pixels.shape[-2], pixels.shape[-1])
        with torch.autocast(pixels.device.type, enabled=False):
            outputs = self.model(self._prepared(pixels))
        sizes = [size] * len(pixels)
        if self.map_kind == "segmentation":
            check_maps(outputs.logits, self.map_kind, self._settings)
            found = self._processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            colours = torch.from_numpy(CLASS_COLOURS).to(pixels.device)
            return colours[torch.stack(found)].permute(0, 3, 1, 2)
        found = self._processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        depth = torch.stack([one["predicted_depth"] for one in found]).float()
        check_maps(depth, self.map_kind, self._settings)
        return depth_levels(1 / depth.clamp_min(1e-6) if self._is_distance else depth)

    def _prepared(self, pixels: Tensor) -> Tensor:
        """What the network reads; torchvision prepares on the device, Pillow on the processor."""
        if is_torchvision_available():
            prepared = self._processor(images=list(pixels), return_tensors="pt", device=pixels.device)
        else:
            pictures = list(pixels.permute(0, 2, 3, 1).cpu().numpy())
            prepared = self._processor(images=pictures, return_tensors="pt")
        values: Tensor = prepared["pixel_values"]
        return values.to(pixels.device, self._dtype)

    def _hash(self, config: Any) -> str:
        told = (type(self.model).__name__, type(self._processor).__name__, self._dtype)
        digest = hashlib.sha256(repr(told).encode())
        for configuration in (config, self._processor):
            digest.update(configuration.to_json_string().encode())
        digest.update(hash_weights(self.model.state_dict()).encode())
        return digest.hexdigest()[:16]


def depth_levels(depth: Tensor) -> Tensor:
    """Depth [batch, height, width], nearest largest, each stretched: gray uint8 [batch, 3, height, width].

    Each map is stretched over its finite values. A pixel without one (half precision may overflow) counts as
    farthest; a map without any is black.
    """
    finite = depth.isfinite()
    low = depth.where(finite, depth.new_tensor(torch.inf)).amin((1, 2), keepdim=True)
    high = depth.where(finite, depth.new_tensor(-torch.inf)).amax((1, 2), keepdim=True)
    shares = (depth.where(finite, low) - low) / (high - low).clamp_min(1e-12)
    levels = (255 * shares).nan_to_num(0.0).round().clamp(0, 255)
    return levels.to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def check_maps(values: Tensor, map_kind: str, settings: AnnotatorSettings) -> None:
    """Refuse a network's output without a single finite value, which would become an empty map.

    It reads one number from the device for each batch that a network annotates.

    Args:
        values: What the network gave, [batch, ...].
        map_kind: The map that is made of it.
        settings: Of the annotator.

    Raises:
        AnnotatorError: Says how many maps are empty.
    """
    empty = int((~values.isfinite().flatten(1).any(1)).sum())
    if empty:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {settings.path} made {empty} of {len(values)} maps without a "
            f"finite value in {settings.dtype}. Half precision may have overflowed: try dtype: float32; if "
            "that does not help, its weights are damaged"
        )


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Hash of names, types and values of tensors, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(map_kind: str, settings: AnnotatorSettings) -> tuple[Any, Any]:
    """The network and its image processor.

    Raises:
        AnnotatorError: They are not there, or weights are missing, which would be left random.
    """
    where, revision = str(settings.path), settings.revision or "main"
    try:
        model, report = _AUTO[map_kind].from_pretrained(where, revision=revision, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(where, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {where} cannot be loaded as a network for {map_kind} ({error}). "
            f"Give a folder or hub name of a model for {_AUTO[map_kind].__name__}, with its image processor"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise AnnotatorError(
            f"data.annotators.{map_kind}: {where} lacks {len(missing)} weights of a {type(model).__name__} "
            f"(for example {', '.join(missing[:3])}), so its maps would be random. It is probably a bare "
            f"backbone; take one that was trained for {map_kind}"
        )
    return model, processor


def _is_distance(config: Any, settings: AnnotatorSettings) -> bool:
    """Whether the network tells metres from the camera, so that far is large.

    Raises:
        AnnotatorError: It is not known what its numbers mean.
    """
    if config.model_type not in NEAREST_IS_LARGEST:
        raise AnnotatorError(
            f"data.annotators.depth: {settings.path} is a {config.model_type!r}, and whether its numbers "
            f"grow towards the camera is not known; take one of {', '.join(NEAREST_IS_LARGEST)}, or wrap "
            "it in an annotator of your own (kind: custom)"
        )
    return getattr(config, "depth_estimation_type", "relative") == "metric"
