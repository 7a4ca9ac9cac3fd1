"""The doctor's memory estimate follows the settings: all sources, their own sizes, the largest bucket."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.cologen import doctor
from tests.recipes.cologen.training.conftest import base_path, make_config

__all__ = ["base_path"]
TARGETS, SOURCES = [(32, 48), (48, 32)], [(48, 32), (64, 64)]
ROW = {"steps": 2, "batch_size": 2, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}


def picture(path, shape):
    rng = np.random.default_rng(len(path.name) + shape[0])
    Image.fromarray(rng.integers(1, 256, (*shape, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def memory(base_path, tmp_path):
    """The memory of a run on pairs whose source has another shape than their target."""
    lines = []
    for number, (target, source) in enumerate(zip(TARGETS, SOURCES, strict=True)):
        names = [f"{number}-{place}.png" for place in range(3)]
        for name, shape in zip(names, (source, target, source), strict=True):
            picture(tmp_path / name, shape)
        pair = {"task": "editing", "image": names[1], "prompt": "make the circle blue", "sources": names[2:]}
        lines.append(json.dumps({"file_name": names[0], "text": "red circle", "pairs": [pair]}) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    places = ["data.source=sets", "data.sets.a.layout=own", f"data.sets.a.path=folder:{tmp_path}"]
    fixed = [*places, "data.sets.a.tasks=[editing]", "validation.samples=0", f"data.buckets.index={tmp_path}"]

    def ask(*overrides):
        config = make_config(base_path, f"stages={json.dumps({'editing': ROW})}", *fixed, *overrides)
        file, answer = tmp_path / "config.yaml", tmp_path / "answer.json"
        file.write_text(config.to_yaml())
        doctor.main(["--config", str(file), "--output", str(tmp_path / "run"), "--json", str(answer)])
        return json.loads(answer.read_text())["memory"]

    return ask


def activations(found):
    return next(part["bytes"] for part in found["parts"] if part["name"] == "activations")


def test_every_source_that_a_pair_may_have_is_counted(memory):
    found = [memory("data.size=[16,24]", f"data.max_sources={most}") for most in (2, 3, 4)]
    assert [one["source_sizes"] for one in found] == [[[16, 24]] * most for most in (2, 3, 4)]
    two, three, four = map(activations, found)
    assert two < three < four


def test_the_sizes_are_those_of_the_bucket_that_needs_most(memory, capsys):
    buckets = "data.buckets.sizes=[[16,24],[24,16],[32,32]]"
    found = memory(buckets, "data.max_sources=2")
    assert (found["size"], found["source_sizes"]) == ([24, 16], [[32, 32], [32, 32]])
    assert "2 x 24 x 16 pixels, each from 32 x 32 and 32 x 32" in capsys.readouterr().out.replace("\n", " ")
