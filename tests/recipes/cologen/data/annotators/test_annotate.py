"""Annotators that cannot be: each is refused by name, with what to do; controlnet_aux is an extra."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, DPTImageProcessor, GLPNConfig, GLPNForDepthEstimation

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.run import parse_config
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.errors import AnnotatorError
from tests.recipes.cologen.annotator_folders import save_depth_anything, save_segformer

CPU = torch.device("cpu")
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 30, 41), dtype=np.uint8))


def load(map_kind, **chosen):
    return Annotators.load({map_kind: AnnotatorSettings(**chosen)}, CPU)


@pytest.mark.parametrize(
    ("annotator", "told"),
    [
        ("sketch: {kind: opencv}", "'sketch' is no control map; expected one of canny, depth"),
        ("depth: {kind: opencv}", "'opencv' cannot make 'depth', only canny.*take transformers or custom"),
        ("canny: {kind: transformers, path: x}", "only depth, segmentation; for 'canny' take opencv"),
        ("depth: {kind: transformers}", "path is missing: 'transformers' needs a folder or hub name"),
        ("canny: {kind: custom}", "path is missing: 'custom' needs module:name"),
        ("canny: {kind: opencv, path: x}", "has no network, so it takes no path"),
        ("canny: {kind: opencv, dtype: bfloat16}", "takes no dtype"),
        (
            "canny: {kind: opencv, options: {high: 3, hi: 4}}",
            "canny.options: 'opencv' has no hi here; it has low",
        ),
        ("lineart: {kind: controlnet_aux, path: x, revision: a}", "revision is only read by 'transformers'"),
        ("depth: {kind: transformers, path: x, dtype: int8}", "dtype"),
    ],
)
def test_settings_that_cannot_be_are_refused(annotator, told):
    values = {"name": "t", "base": {"path": "x"}, "data": {"source": "folder:a"}}
    with pytest.raises(ConfigError, match=told):
        parse_config(values, [f"data.annotators={{{annotator}}}"])


def test_the_world_draws_its_own_maps():
    with pytest.raises(ConfigError, match="the world draws its own maps"):
        parse_config({"name": "t", "base": {"path": "x"}}, ["data.annotators.canny.kind=opencv"])


def test_a_folder_without_a_network_is_named(tmp_path):
    with pytest.raises(
        AnnotatorError, match=r"data\.annotators\.depth: .*cannot be loaded.*AutoModelForDepth"
    ):
        load("depth", kind="transformers", path=str(tmp_path))
    with pytest.raises(AnnotatorError, match="cannot be loaded as a network for depth"):
        load("depth", kind="transformers", path=str(save_segformer(tmp_path)))


def test_a_bare_backbone_is_no_depth_network(tmp_path):
    save_depth_anything(tmp_path)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path / "weights")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "weights/model.safetensors").read_bytes())
    with pytest.raises(AnnotatorError, match=r"lacks \d+ weights of a DepthAnything.*maps would be random"):
        load("depth", kind="transformers", path=str(tmp_path))


def test_depth_whose_direction_is_not_known_is_refused(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "decoder_hidden_size": 8}
    GLPNForDepthEstimation(GLPNConfig(depths=[1, 1, 1, 1], **sizes)).save_pretrained(tmp_path)
    DPTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(AnnotatorError, match="'glpn', and whether its numbers grow towards the camera"):
        load("depth", kind="transformers", path=str(tmp_path))


def test_more_classes_than_colours_are_refused(tmp_path):
    with pytest.raises(AnnotatorError, match="tells 300 classes apart, but at most 256"):
        load("segmentation", kind="transformers", path=str(save_segformer(tmp_path, labels=300)))


def test_a_map_that_nobody_draws_is_named():
    with pytest.raises(
        AnnotatorError, match="waits for a 'depth' map, but the annotators loaded here are none"
    ):
        Annotators().sources(PIXELS, ["depth", None, None])


@pytest.mark.parametrize("map_kind", ["depth", "segmentation"])
def test_a_map_without_a_finite_value_is_no_map(map_kind, tmp_path):
    save = save_depth_anything if map_kind == "depth" else save_segformer
    annotators = load(map_kind, kind="transformers", path=str(save(tmp_path)))
    network = dict(annotators.items())[map_kind].model
    annotators.annotate(map_kind, PIXELS)
    spoilt = next(iter(network.parameters()))
    with torch.no_grad():
        spoilt.fill_(torch.nan)
    with pytest.raises(AnnotatorError, match=rf"{map_kind}: .* made 3 of 3 maps without a finite .*float32"):
        annotators.annotate(map_kind, PIXELS)


class Negative:
    """A user's own annotator."""

    needs = "nothing"

    def __init__(self, map_kind, settings, device):
        self.map_kind, self.settings = map_kind, settings

    def fingerprint(self):
        return "negative"

    def annotate(self, pixels):
        return pixels[:, :1] if self.settings.options.get("gray") else 255 - pixels


def test_an_annotator_of_ones_own_is_called_and_checked():
    path = f"{__name__}:Negative"
    negative = load("soft_edge", kind="custom", path=path)
    assert torch.equal(negative.sources(PIXELS, [None, "soft_edge", None])[1], 255 - PIXELS[1])
    gray = load("soft_edge", kind="custom", path=path, options={"gray": 1})
    with pytest.raises(
        AnnotatorError, match=r"made torch.uint8 \[1, 1, 30, 41\]; expected .* \[1, 3, 30, 41\]"
    ):
        gray.sources(PIXELS, [None, "soft_edge", None])
    with pytest.raises(AnnotatorError, match="'nowhere:Thing' cannot be called"):
        load("depth", kind="custom", path="nowhere:Thing")
    with pytest.raises(AnnotatorError, match="made a Mock without needs, fingerprint, annotate"):
        load("depth", kind="custom", path=f"{__name__}:Mock")


def Mock(*arguments):  # noqa: N802
    class Mock:
        pass

    return Mock()


def test_without_controlnet_aux_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(
        AnnotatorError, match=r"HEDdetector is of controlnet_aux.*pip install 'prw\[annotators\]'"
    ):
        load("soft_edge", kind="controlnet_aux", path="x")


class _Pyramid(nn.Module):
    """As HED's network: edges at full and half size."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 1, 3, stride=2, padding=1)

    def forward(self, pixels):
        return self.fine(pixels), self.coarse(pixels)


def _detectors(asked):
    """Stand-ins with controlnet_aux's names and attributes; the real ones are in the test below."""
    torch.manual_seed(0)

    def from_pretrained(path):
        asked.append(path)
        lines = [
            nn.Sequential(nn.Conv2d(3, 1, 4, 4), nn.Upsample(scale_factor=4), nn.Sigmoid()) for _ in "ab"
        ]
        return types.SimpleNamespace(netNetwork=_Pyramid(), model=lines[0], model_coarse=lines[1])

    detector = types.SimpleNamespace(from_pretrained=from_pretrained)
    return types.SimpleNamespace(HEDdetector=detector, LineartDetector=detector)


@pytest.mark.parametrize("map_kind", ["soft_edge", "lineart"])
def test_detectors_draw_batches_at_any_size(map_kind, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "controlnet_aux", _detectors(asked))
    loaded = load(map_kind, kind="controlnet_aux", path="weights")
    maps = loaded.annotate(map_kind, PIXELS)
    assert asked == ["weights"] and maps.shape == PIXELS.shape
    alone = torch.cat([loaded.annotate(map_kind, one[None]) for one in PIXELS])
    assert int((maps.int() - alone.int()).abs().max()) <= 1
    assert len(np.unique(maps)) > 2
    with torch.no_grad():
        for weight in dict(loaded.items())[map_kind].network.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(AnnotatorError, match="made 3 of 3 maps without a finite"):
        loaded.annotate(map_kind, PIXELS)
    loaded = load(map_kind, kind="controlnet_aux", path="weights")
    first = dict(loaded.items())[map_kind].fingerprint()
    if map_kind == "lineart":
        coarse = load(map_kind, kind="controlnet_aux", path="weights", options={"coarse": 1})
        assert dict(coarse.items())[map_kind].fingerprint() != first


@pytest.mark.parametrize("map_kind", ["soft_edge", "lineart"])
def test_controlnet_aux_itself_draws_the_same(map_kind, tmp_path):
    package = pytest.importorskip("controlnet_aux", reason="the extra `annotators` is not installed")
    torch.manual_seed(0)
    save_detector_weights(tmp_path)
    detector = {"soft_edge": package.HEDdetector, "lineart": package.LineartDetector}[map_kind]
    pixels = torch.nn.functional.interpolate(PIXELS.float(), (64, 128)).to(torch.uint8)
    drawn = load(map_kind, kind="controlnet_aux", path=str(tmp_path)).annotate(map_kind, pixels)
    own = detector.from_pretrained(str(tmp_path))
    for picture, found in zip(pixels, drawn, strict=True):
        options = {"detect_resolution": 64, "image_resolution": 64, "output_type": "np"}
        wanted = own(picture.permute(1, 2, 0).numpy(), **options)
        assert len(np.unique(wanted)) > 2
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted.astype(int)).max() <= 1


def save_detector_weights(folder):
    """Random weights under the names that the detectors look for."""
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.lineart import Generator

    hed = ControlNetHED_Apache2()
    torch.save(hed.state_dict(), folder / "ControlNetHED.pth")
    for name in ("sk_model.pth", "sk_model2.pth"):
        torch.save(Generator(3, 1, 3).state_dict(), folder / name)
