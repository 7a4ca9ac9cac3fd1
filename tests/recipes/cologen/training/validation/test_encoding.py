"""Validation encodes as training does: so many at once, through the caches, at the times of training."""

from dataclasses import replace

import pytest
import torch

from recipes.cologen.caching.encoder import Encoder, open_encoder
from recipes.cologen.data.world import World
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.shift import shift_factor, shift_times
from recipes.cologen.training.flow import interpolate
from recipes.cologen.training.validation import loss as module
from recipes.cologen.training.validation import schedule as validating
from recipes.cologen.training.validation.loss import TIMES, held_out_loss
from recipes.cologen.training.validation.scores import evaluate_task, held_out_examples
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_step import make_trained

__all__ = ["make_trained"]
HOW = {"steps": 1, "seed": 3, "batch_size": 4, "source_timestep": "zero"}


@pytest.fixture
def sizes(monkeypatch):
    """How many pictures and prompts the frozen encoders take at once, from now on."""
    seen = []
    for name in ("encode_images", "encode_prompts"):
        original = getattr(FluxModel, name)

        def noting(model, given, original=original):
            seen.append(len(given))
            return original(model, given)

        monkeypatch.setattr(FluxModel, name, noting)
    return seen


def some_examples(task="grounding"):
    return held_out_examples(World(9, held_out=True), task, 4, seed=2)


@pytest.mark.parametrize("at_once", [1, 2])
def test_encode_batch_bounds_what_a_run_encodes_at_once(base_path, run, tmp_path, sizes, at_once):
    config = make_config(base_path, f"machine.encode_batch={at_once}", "validation.samples=4")
    assert run(config, tmp_path / "run", "inpainting").trained == ("inpainting",)
    assert max(sizes) == at_once


def test_what_is_measured_is_what_the_base_alone_would_encode(make_trained):
    trained, examples = make_trained(), some_examples()
    plain = evaluate_task(trained.model, trained.weave, examples, **HOW)
    encode = validating.partial(validating.encode_examples, trained)
    through = evaluate_task(trained.model, trained.weave, examples, **HOW, encode=encode)
    assert all(map(lambda a, b: (a == b).all(), plain.images, through.images))
    assert plain.values == through.values and torch.equal(plain.usage, through.usage)
    one = replace(trained, encoder=Encoder(trained.model, trained.model.device, at_once=1))
    losses = [held_out_loss(of, examples, seed=1, batch_size=4).by_time for of in (trained, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_second_validation_encodes_nothing_that_is_kept(make_trained, tmp_path, sizes):
    trained = make_trained(
        "data.source=folder:x", f"data.cache.folder={tmp_path}", "data.cache.stages=[grounding]"
    )
    encoder = open_encoder(trained.model, trained.model.device, trained.config.data.cache)
    trained = replace(trained, encoder=encoder)
    fixed = frozenset({"prompt", "source", "target"})
    for task, again in (("grounding", 0), ("inpainting", 1)):
        examples = [replace(example, fixed=fixed) for example in some_examples(task)]
        first = held_out_loss(trained, examples, seed=1, batch_size=4)
        sizes.clear()
        assert held_out_loss(trained, examples, seed=1, batch_size=4).by_time == first.by_time
        assert bool(sizes) == bool(again)


def test_the_loss_is_measured_at_the_times_of_training(make_trained, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module,
        "interpolate",
        lambda clean, noise, times: seen.append(times) or interpolate(clean, noise, times),
    )
    trained = make_trained("flow.shift=dynamic")
    model = trained.model
    held_out_loss(trained, some_examples(), seed=1, batch_size=4)
    tokens = model.encode_images(torch.zeros(1, 3, 16, 16)).tokens.shape[1]
    factor = shift_factor(model.scheduler.config, "dynamic", model.schedule_shift(tokens, 28))
    expected = shift_times(torch.tensor(TIMES), factor)
    assert factor > 1.2 and torch.equal(torch.stack(seen), expected[:, None].expand(8, 4))
    seen.clear()
    held_out_loss(make_trained(), some_examples(), seed=1, batch_size=4)
    assert torch.equal(torch.stack(seen)[:, 0], torch.tensor(TIMES))
