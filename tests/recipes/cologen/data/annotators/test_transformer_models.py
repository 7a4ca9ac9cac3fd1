"""Annotators draw the maps that a data set lacks: real classes, tiny and random; pictures are not square."""

import hashlib
import shutil
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import DPTImageProcessor

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.data.annotators.annotate import Annotators, annotate, worker_annotators
from recipes.cologen.data.annotators.opencv import OpenCvAnnotator
from recipes.cologen.data.class_colours import CLASS_COLOURS
from recipes.cologen.data.control import control
from recipes.cologen.data.opening import AnnotatedRecords
from recipes.cologen.data.record import Record
from recipes.cologen.errors import AnnotatorError
from tests.recipes.cologen.annotator_folders import save_depth_anything, save_dpt, save_segformer

CPU = torch.device("cpu")
HEIGHT, WIDTH = 24, 40
SAVERS = {
    "depth": [save_depth_anything, save_dpt],
    "segmentation": [save_segformer],
}
NETWORKS = [(kind, saver) for kind, savers in SAVERS.items() for saver in savers]


@cache
def photographs(height=HEIGHT, width=WIDTH):
    """Photographs of scikit-image, uint8 [4, 3, height, width]."""
    shown = (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
    small = [np.asarray(Image.fromarray(one).resize((width, height))) for one in shown]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)


def record(number=0, **known):
    return Record(f"r{number}", photographs()[number % 4].permute(1, 2, 0).numpy().copy(), "a thing", **known)


def loaded(map_kind, folder, **more):
    chosen = AnnotatorSettings(kind="transformers", path=str(folder), **more)
    return dict(Annotators.load({map_kind: chosen}, CPU).items())[map_kind]


def close(first, second, most=1):
    """Whether maps are the same up to rounding."""
    return int((first.int() - second.int()).abs().max()) <= most


@pytest.mark.parametrize(("map_kind", "save"), NETWORKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_network_draws_a_batch_as_it_draws_each_picture_alone(map_kind, save, tmp_path):
    annotator, pixels = loaded(map_kind, save(tmp_path)), photographs()
    maps = annotator.annotate(pixels)
    assert maps.shape == pixels.shape and maps.dtype == torch.uint8
    assert all(len(np.unique(one.numpy())) > 1 for one in maps)
    assert len({one.numpy().tobytes() for one in maps}) > 1  # it looks at the picture
    alone = torch.cat([annotator.annotate(one[None]) for one in pixels])
    differing = (maps.int() - alone.int()).abs().amax(1) > 1
    # A class changes at once where two are equally likely; depth may round another way.
    assert float(differing.float().mean()) <= (0.002 if map_kind == "segmentation" else 0)


def test_depth_is_what_transformers_pipeline_says_with_the_nearest_white(tmp_path):
    from transformers import pipeline

    annotator = loaded("depth", save_depth_anything(tmp_path))
    picture = Image.fromarray(photographs()[0].permute(1, 2, 0).numpy())
    said = pipeline("depth-estimation", model=str(tmp_path))(picture)["predicted_depth"]
    drawn = annotator.annotate(photographs()[:1])[0, 0]
    stretched = 255 * (said - said.min()) / (said.max() - said.min())
    assert close(drawn, stretched.round())
    assert drawn.min() == 0 and drawn.max() == 255


def test_metric_depth_is_turned_round_so_that_near_is_white(tmp_path):
    near = loaded("depth", save_depth_anything(tmp_path / "a")).annotate(photographs()).float()
    far = loaded("depth", save_depth_anything(tmp_path / "b", kind="metric")).annotate(photographs()).float()
    # The same random weights: "metric" ends in a sigmoid, which keeps the order, and 1/x turns it round.
    assert np.corrcoef(near[0, 0].flatten(), far[0, 0].flatten())[0, 1] < 0


def test_classes_get_the_colours_of_stored_classes(tmp_path):
    from transformers import pipeline

    annotator = loaded("segmentation", save_segformer(tmp_path))
    pixels = photographs()[1:2]
    drawn = annotator.annotate(pixels)[0].permute(1, 2, 0).numpy()
    said = pipeline("image-segmentation", model=str(tmp_path))(
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    )
    for segment in said:
        number = int(segment["label"].removeprefix("LABEL_"))
        assert (drawn[np.asarray(segment["mask"]) > 0] == CLASS_COLOURS[number]).all()
    assert {tuple(colour) for colour in drawn.reshape(-1, 3)} <= {tuple(c) for c in CLASS_COLOURS[:5]}


def test_half_precision_is_nearly_the_same_and_does_not_follow_autocast(tmp_path):
    save_depth_anything(tmp_path)
    full, half = loaded("depth", tmp_path), loaded("depth", tmp_path, dtype="bfloat16")
    pixels = photographs()
    with torch.autocast("cpu", torch.bfloat16):
        inside = full.annotate(pixels)
    assert torch.equal(inside, full.annotate(pixels))
    assert float((half.annotate(pixels).float() - full.annotate(pixels).float()).abs().mean()) < 12
    assert half.fingerprint() != full.fingerprint()


def test_a_fingerprint_follows_weights_and_preparation_and_not_the_place(tmp_path):
    first = loaded("depth", save_depth_anything(tmp_path / "a")).fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert loaded("depth", tmp_path / "b").fingerprint() == first
    DPTImageProcessor(size={"height": 42, "width": 42}).save_pretrained(tmp_path / "b")
    assert loaded("depth", tmp_path / "b").fingerprint() != first
    assert loaded("depth", save_depth_anything(tmp_path / "c", seed=9)).fingerprint() != first
    plain = worker_annotators({"canny": AnnotatorSettings(kind="opencv")})["canny"]
    other = worker_annotators({"canny": AnnotatorSettings(kind="opencv", options={"low": 10})})["canny"]
    assert plain is not None and other is not None and plain.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("map_kind", ["canny", "lineart", "soft_edge"])
def test_a_fingerprint_changes_with_the_map_alone(map_kind):
    """Runs on soft edges, which are drawn as ever, go on; the other two maps have changed once."""
    annotator = OpenCvAnnotator(map_kind)
    facts = repr((map_kind, sorted(annotator.options.items()), cv2.__version__))
    first = hashlib.sha256(facts.encode()).hexdigest()[:16]
    assert (annotator.fingerprint() == first) == (map_kind == "soft_edge")


@given(st.lists(st.sampled_from([None, "depth", "segmentation", "canny"]), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_of_a_mixed_batch_each_picture_gets_its_own_map_and_ready_ones_stay(annotators, waiting):
    pixels = photographs()
    before = pixels.clone()
    sources = annotators.sources(pixels, waiting)
    for row, name in enumerate(waiting):
        alone = pixels[row] if name is None else annotators.annotate(name, pixels[row : row + 1])[0]
        assert close(sources[row], alone) or name == "segmentation"
    assert torch.equal(pixels, before)


@pytest.fixture(scope="module")
def annotators(tmp_path_factory):
    """Two networks and OpenCV."""
    folder = tmp_path_factory.mktemp("networks")
    networks = {"depth": save_depth_anything, "segmentation": save_segformer}
    chosen = {
        kind: AnnotatorSettings(kind="transformers", path=str(save(folder / kind)))
        for kind, save in networks.items()
    }
    return Annotators.load({**chosen, "canny": AnnotatorSettings(kind="opencv")}, CPU)


class _OneRecord:
    def __len__(self):
        return 1

    def record(self, index):
        return record(index)


def test_the_kind_follows_from_id_and_seed_and_networks_are_left_to_the_device():
    chosen = {
        "depth": AnnotatorSettings(kind="transformers", path="x"),
        "canny": AnnotatorSettings(kind="opencv", options={"low": 20, "high": 40}),
    }
    annotated = AnnotatedRecords(_OneRecord(), worker_annotators(chosen)).record(0)
    made = [control(annotated, seed) for seed in range(60)]
    kinds = {one.kind for one in made}
    assert kinds == {"canny", "soft_edge", "lineart", "depth"}
    assert [one.kind for one in made] == [control(annotated, seed).kind for seed in range(60)]
    for one in made:
        assert one.annotator == ("depth" if one.kind == "depth" else None)
        assert one.prompt.endswith("a thing") and np.array_equal(one.target, annotated.image)
        if one.kind == "depth":
            assert np.array_equal(one.source, annotated.image)
        if one.kind == "canny":
            edges = [cv2.Canny(np.ascontiguousarray(annotated.image[..., c]), 20, 40).max() for c in range(3)]
            assert one.source.max() == max(edges) and not np.array_equal(one.source, draw_canny_default())


def draw_canny_default():
    return control(record(0), next(s for s in range(60) if control(record(0), s).kind == "canny")).source


def test_what_is_stored_is_never_drawn_anew():
    deep = record(depth=np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH))
    mapped = replace(deep, maps={"segmentation": deep.image[::-1].copy()})
    names = ("depth", "segmentation")
    made = [control(replace(mapped, annotators=dict.fromkeys(names)), seed) for seed in range(60)]
    assert {one.kind for one in made} >= {"depth", "segmentation"}
    assert all(one.annotator is None for one in made)
    assert [one.source.tobytes() for one in made] == [control(mapped, s).source.tobytes() for s in range(60)]


def test_completing_examples_draws_those_that_wait(annotators):
    waiting = control(replace(record(1), annotators={"depth": None}), 0)
    seeds = range(60)
    examples = [control(replace(record(1), annotators={"depth": None}), seed) for seed in seeds]
    done = annotators.complete([waiting, *examples], CPU)
    assert all(one.annotator is None for one in done)
    drawn = [one for one, was in zip(done[1:], examples, strict=True) if was.annotator == "depth"]
    expected = annotators.annotate("depth", photographs()[1:2])[0].permute(1, 2, 0).numpy()
    assert drawn and all(np.array_equal(one.source, expected) for one in drawn)
    assert all(one is was for one, was in zip(done[1:], examples, strict=True) if was.annotator is None)


def test_one_map_of_a_picture_is_what_training_draws(annotators, tmp_path):
    picture = photographs()[2].permute(1, 2, 0).numpy().copy()
    chosen = {"depth": AnnotatorSettings(kind="transformers", path=str(save_dpt(tmp_path)))}
    drawn = annotate(picture, "depth", chosen, CPU)
    assert drawn.shape == picture.shape and len(np.unique(drawn)) > 1
    edges = annotate(picture, "canny", {}, CPU)
    assert set(np.unique(edges)) == {0, 255}
    with pytest.raises(AnnotatorError, match="segmentation map needs a network"):
        annotate(picture, "segmentation", chosen, CPU)
