"""Runs whose control maps are drawn by networks: in the training step, in validation, report and command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import prw
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.errors import AnnotatorError
from recipes.cologen.generate import main as draw_picture
from recipes.cologen.report.cells import open_scorer
from recipes.cologen.runs.loading import load_base
from recipes.cologen.training import step as step_module
from recipes.cologen.training.input.batches import batches, withhold
from recipes.cologen.training.step import TrainedModel, encode
from recipes.cologen.training.validation.scores import evaluate_task, held_out_examples
from tests.recipes.cologen.annotator_folders import save_depth_anything, save_segformer
from tests.recipes.cologen.training.conftest import make_config

WIDTH, HEIGHT = 24, 16
CPU = torch.device("cpu")
ROW = {"steps": 3, "batch_size": 4, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A depth and a segmentation network."""
    folder = tmp_path_factory.mktemp("networks")
    return {"depth": save_depth_anything(folder / "d"), "segmentation": save_segformer(folder / "s")}


@pytest.fixture
def config_of(base_path, tmp_path, networks):
    """The control stage on a folder of plain pictures, whose depth and classes nobody stored."""

    def make(*overrides):
        folder = {}
        for name, first in (("seen", 0), ("held", 50)):
            folder[name] = tmp_path / name
            folder[name].mkdir(exist_ok=True)
            lines = []
            for number in range(6):
                rng = np.random.default_rng(first + number)
                pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder[name] / f"{number}.png")
                lines.append(json.dumps({"file_name": f"{number}.png", "text": "red circle on tan"}) + "\n")
            (folder[name] / "metadata.jsonl").write_text("".join(lines))
        drawn = [
            f"data.annotators.{kind}={{kind: transformers, path: {path}}}" for kind, path in networks.items()
        ]
        places = [f"data.source=folder:{folder['seen']}", f"data.held_out=folder:{folder['held']}"]
        stages = ["stages=" + json.dumps({"control": ROW})]
        return make_config(base_path, *stages, *places, *drawn, "validation.samples=6", *overrides)

    return make


def stream(config, workers=0):
    sampler = BatchSampler(6, batch_size=6, seed=1)
    return batches(
        training_records(config.data).stage("control").records, "control", sampler, config.dropout, workers
    )


def test_a_run_draws_maps_in_its_steps_and_resumes_bit_equal(config_of, run, stop_at, tmp_path, monkeypatch):
    config, seen = config_of("logging.checkpoint_every=1", "machine.workers=1"), []
    original = step_module.encode

    def watching(trained, batch):
        seen.append(batch.annotators)
        return original(trained, batch)

    monkeypatch.setattr(step_module, "encode", watching)
    assert run(config, tmp_path / "whole").complete
    assert {name for names in seen for name in names} == {None, "depth", "segmentation"}
    stop_at(1)
    assert not run(config, tmp_path / "cut").complete
    assert run(config, tmp_path / "cut").complete
    weights = [
        (tmp_path / name / "checkpoints/control/prw/adapter_model.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert weights[0] == weights[1]
    card = json.loads((tmp_path / "whole/data_card.json").read_text())["annotators"]
    assert set(card) == {"depth", "segmentation"} and len(card["depth"]["fingerprint"]) == 16
    assert card["depth"]["fingerprint"] in (tmp_path / "whole/data_card.md").read_text()


def make_trained(config):
    model = load_base(config, CPU)
    weave = prw.inject(model.transformer, experts=["control"], **config.pool.model_dump())
    annotators = Annotators.load(config.data.annotators, CPU)
    return TrainedModel(
        model, weave, Accelerator(), config, Encoder(model, model.device), annotators=annotators
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_encoded_is_the_map_and_the_target_stays_the_picture(config_of, dtype):
    config = config_of(f"base.dtype={dtype}", "dropout.source=0", "dropout.text=0")
    trained, batch = make_trained(config), next(stream(config))
    waits = [name is not None for name in batch.annotators]
    assert any(waits) and not all(waits)
    encoded = encode(trained, batch)
    pictures = trained.annotators.sources(batch.source, batch.annotators)
    assert not torch.equal(pictures, batch.source)
    ready = encode(trained, batch._replace(source=pictures, annotators=()))
    assert torch.equal(encoded.sources[0].tokens, ready.sources[0].tokens)
    assert torch.equal(encoded.velocity, ready.velocity)
    unready = encode(trained, batch._replace(annotators=()))
    for row, wait in enumerate(waits):
        assert torch.equal(encoded.sources[0].tokens[row], unready.sources[0].tokens[row]) != wait


def test_workers_leave_networks_to_the_step_and_a_withheld_source_stays_black(config_of):
    here, elsewhere = next(stream(config_of())), next(stream(config_of(), workers=2))
    assert here.annotators == elsewhere.annotators and torch.equal(here.source, elsewhere.source)
    config = config_of("dropout.source=1")
    batch = next(stream(config))
    assert not batch.source.any() and set(batch.annotators) == {None}
    example = held_out_examples(training_records(config.data).stage("control").records, "control", 1, seed=0)[
        0
    ]
    assert withhold(example, 0, config.dropout).annotator is None


def test_a_source_that_still_waits_is_not_scored(config_of):
    config = config_of("dropout.source=0")
    trained = make_trained(config)
    records = training_records(config.data).stage("control").records
    examples = held_out_examples(records, "control", 12, seed=0)
    sampling = {"steps": 1, "seed": 0, "batch_size": 4, "source_timestep": "zero"}
    with pytest.raises(AnnotatorError, match=r"sources wait for .* maps.*Annotators\.complete"):
        evaluate_task(trained.model, trained.weave, examples, **sampling)
    done = trained.annotators.complete(examples, CPU)
    assert len(evaluate_task(trained.model, trained.weave, done, **sampling).values) == 12
    with pytest.raises(AnnotatorError, match="loaded here are none"):
        encode(replace(trained, annotators=Annotators()), next(stream(config)))


def test_report_and_command_draw_as_training_does(config_of, run, tmp_path, networks):
    output = tmp_path / "run"
    assert run(config_of(), output).complete
    scorer = open_scorer(output, n=12)
    examples = scorer.examples("control")
    assert all(one.annotator is None for one in examples) and {"depth"} <= {one.kind for one in examples}
    example = next(one for one in examples if one.kind == "depth")
    Image.fromarray(example.target).save(tmp_path / "photo.png")
    Image.fromarray(example.source).save(tmp_path / "map.png")
    drawn = {}
    for name, more in (("photo", ["--draw-map", "depth"]), ("map", []), ("plain", [])):
        picture = tmp_path / ("photo.png" if name == "plain" else f"{name}.png")
        files = ["--image", str(picture), "--output", str(tmp_path / f"{name}-out.png")]
        words = ["--task", "control", "--prompt", example.prompt, "--native"]
        assert draw_picture(["--checkpoint", str(output), *files, *words, *more]) == 0
        drawn[name] = np.asarray(Image.open(tmp_path / f"{name}-out.png"))
    assert np.array_equal(drawn["photo"], drawn["map"])


def test_a_missing_network_stops_a_run_before_anything_is_written(config_of, run, tmp_path):
    config = config_of(f"data.annotators.depth.path={tmp_path}/nowhere")
    with pytest.raises(AnnotatorError, match="nowhere cannot be loaded"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
