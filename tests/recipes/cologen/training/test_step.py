"""One step: what moves, what must not, and what the losses are made of."""

from itertools import islice

import pytest
import torch
from accelerate import Accelerator

import prw
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.data.world import World
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.offloading import OffloadedPart
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from recipes.cologen.runs.loading import load_base
from recipes.cologen.training.input.batches import batches
from recipes.cologen.training.optimizers import make_optimizer
from recipes.cologen.training.step import (
    StepLosses,
    TrainedModel,
    batch_loss,
    learning_rate,
    train_step,
)
from tests.recipes.cologen.training.conftest import make_config


@pytest.fixture
def make_trained(base_path):
    """A pool of two experts on the base, the newest with something to say."""

    def make(*overrides, base=base_path):
        config = make_config(base, "dropout.text=0", "dropout.source=0", *overrides)
        model = load_base(config, torch.device("cpu"))
        weave = prw.inject(model.transformer, experts=["inpainting"], **config.pool.model_dump())
        with torch.no_grad():
            for parameter in weave.trainable_parameters():
                parameter.normal_(std=0.2)
        weave.add_expert("grounding", init="inpainting")
        model.transformer.train()
        return TrainedModel(model, weave, Accelerator(), config, Encoder(model, model.device))

    return make


def some_batches(count=1, size=4):
    sampler = BatchSampler(None, batch_size=size, seed=0)
    return list(islice(batches(World(0), "grounding", sampler, make_config("x").dropout), count))


def stage(trained, **changes):
    return trained.config.stages["grounding"].model_copy(update=changes)


def test_only_the_newest_expert_moves_weight_decay_or_not(make_trained):
    trained = make_trained("optimizer.weight_decay=0.5")
    newest = {id(parameter) for parameter in trained.weave.trainable_parameters()}
    modules = trained.model.modules()
    everything = [
        (id(value) in newest, value, value.clone()) for module in modules for value in module.parameters()
    ]
    optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
    for step in (1, 2):
        train_step(trained, stage(trained), step, optimizer, some_batches())
    moved = [not torch.equal(value, before) for _, value, before in everything]
    assert moved == [is_trained for is_trained, _, _ in everything]
    assert sum(moved) == len(newest) > 0


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_repeating_a_batch_lowers_its_loss(make_trained, source_timestep):
    trained = make_trained(f"flow.source_timestep={source_timestep}", "pool.noise=false")
    optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
    losses = [
        train_step(trained, stage(trained), step, optimizer, some_batches()).task_loss
        for step in range(1, 16)
    ]
    assert losses[-1] < losses[0]


def test_the_loss_is_task_loss_plus_alpha_times_the_distance_from_rho(make_trained):
    trained = make_trained("pool.noise=false")
    (batch,) = some_batches()
    loss, found = batch_loss(trained, stage(trained, rho=0.25, alpha=3.0), batch)
    measured = StepLosses(*found.tolist())
    assert measured.veteran_loss == pytest.approx(3.0 * abs(measured.share - 0.25), rel=1e-5)
    assert loss.item() == pytest.approx(measured.loss, rel=1e-5)
    assert 0 <= measured.share <= 1
    assert 0 < measured.gate <= 1


def test_the_task_loss_is_that_of_the_mean_over_the_batch(make_trained):
    trained = make_trained("pool.noise=false")
    whole, halves = some_batches(size=4), some_batches(count=2, size=2)
    together = batch_loss(trained, stage(trained), whole[0])[1][0].item()
    apart = [batch_loss(trained, stage(trained), half)[1][0].item() for half in halves]
    assert whole[0].seeds == halves[0].seeds + halves[1].seeds
    assert together == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(make_trained):
    after = []
    for micro in (some_batches(size=4), some_batches(count=2, size=2)):
        torch.manual_seed(0)
        trained = make_trained("pool.noise=false", "optimizer.eps=1e-3")
        optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
        train_step(trained, stage(trained, alpha=0.0), 1, optimizer, micro)
        after.append([value.detach().clone() for value in trained.weave.trainable_parameters()])
    torch.testing.assert_close(after[0], after[1], rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_to_the_norm_asked_for(make_trained):
    trained = make_trained("optimizer.clip_norm=1e-3")
    optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
    train_step(trained, stage(trained), 1, optimizer, some_batches())
    gradients = [
        value.grad.norm() for value in trained.weave.trainable_parameters() if value.grad is not None
    ]
    assert torch.stack(gradients).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_the_base_runs_without_gradients_of_its_own(make_trained):
    trained = make_trained()
    batch_loss(trained, stage(trained), some_batches()[0])[0].backward()
    newest = {id(parameter) for parameter in trained.weave.trainable_parameters()}
    for module in trained.model.modules():
        assert all(value.grad is None for value in module.parameters() if id(value) not in newest)


def test_gradient_checkpointing_changes_nothing(make_trained):
    gradients = []
    for checkpointing in ("false", "true"):
        torch.manual_seed(0)
        trained = make_trained(f"machine.gradient_checkpointing={checkpointing}")
        torch.manual_seed(1)
        loss, measured = batch_loss(trained, stage(trained), some_batches()[0])
        loss.backward()
        gradients.append(
            (StepLosses(*measured.tolist()), [value.grad for value in trained.weave.trainable_parameters()])
        )
    assert gradients[0][0] == gradients[1][0]
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize(("reads_guidance", "expected"), [(False, None), (True, 1.5)])
def test_a_base_that_reads_guidance_is_given_it(
    make_trained, tmp_path, monkeypatch, reads_guidance, expected
):
    sizes = {"width": 32, "heads": 2, "axes": (4, 6, 6), "text_width": 16}
    model = build_tiny_flux(
        VOCABULARY, double_blocks=1, single_blocks=1, guidance_embeds=reads_guidance, **sizes
    )
    save_tiny_flux(model, tmp_path, torch.float32)
    trained, given = make_trained("flow.guidance=1.5", base=tmp_path), []
    original = FluxModel.velocity

    def noting(self, *arguments, guidance, **others):
        given.append(guidance)
        return original(self, *arguments, guidance=guidance, **others)

    monkeypatch.setattr(FluxModel, "velocity", noting)
    batch_loss(trained, stage(trained), some_batches()[0])
    assert given == [expected]


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0, 0.0, [1.0, 1.0, 1.0, 1.0]),
        (2, 0.0, [0.5, 1.0, 1.0, 1.0]),
        (0, 0.5, [1.0, 1.0, 1.0, 0.5]),
        (0, 1.0, [1.0, 0.75, 0.5, 0.25]),
        (4, 1.0, [0.25, 0.375, 0.375, 0.25]),
    ],
)
def test_the_learning_rate_rises_stays_and_falls(warmup, decay, expected):
    config = make_config("x", f"optimizer.warmup_steps={warmup}", f"optimizer.decay_fraction={decay}")
    settings = config.stages["grounding"].model_copy(update={"steps": 4, "lr": 1.0})
    assert [learning_rate(step, settings, config.optimizer) for step in (1, 2, 3, 4)] == expected


def test_the_mean_of_measurements_is_taken_number_by_number():
    mean = StepLosses.mean([StepLosses(1, 2, 0, 0.5), StepLosses(3, 0, 1, 0.5)])
    assert mean == StepLosses(2, 1, 0.5, 0.5)
    assert mean.loss == 3


def test_offloaded_encoders_come_once_for_all_micro_batches_of_a_step(make_trained, monkeypatch):
    learnt, seen = {}, []
    show = OffloadedPart.show
    monkeypatch.setattr(
        OffloadedPart,
        "show",
        lambda part, values: seen.append(values is part.on_host) or show(part, values),
    )
    for where in ("resident", "offload", "sequential_offload"):
        torch.manual_seed(3)
        trained = make_trained(f"machine.encoders={where}", "pool.noise=true")
        optimizer = make_optimizer(trained.weave.trainable_parameters(), trained.config.optimizer)
        losses = []
        for number in (1, 2):
            seen.clear()
            losses.append(train_step(trained, stage(trained), number, optimizer, some_batches(3)))
            left = [leaves for leaves in seen if leaves]
            assert seen == [False] * len(left) + left and bool(left) == (where == "offload")
        weights = [value.clone() for value in trained.weave.trainable_parameters()]
        learnt[where] = losses, weights, torch.rand(1)
    for where in ("offload", "sequential_offload"):
        assert learnt[where][0] == learnt["resident"][0] and torch.equal(
            learnt[where][2], learnt["resident"][2]
        )
        assert all(map(torch.equal, learnt[where][1], learnt["resident"][1]))
