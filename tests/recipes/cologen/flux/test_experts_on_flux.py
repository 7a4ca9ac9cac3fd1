"""A real pool of experts on the source stream: who is routed, how often it counts, and what trains."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import prw
from recipes.cologen.flux import FluxModel, SourceTimestep, generate, remove_source_stream

Build = Callable[..., FluxModel]
Inputs = Callable[..., tuple]
both_timesteps = pytest.mark.parametrize("source_timestep", ["same", "zero"])


def with_experts(model: FluxModel, **settings: object) -> prw.Weave:
    """Give the transformer two experts whose B is not zero, so that they are heard."""
    weave = prw.inject(model.transformer, target="kv", rank=4, experts=["a", "b"], **settings)
    for name, parameter in model.transformer.named_parameters():
        if "prw_B" in name:
            torch.nn.init.normal_(parameter)
    return weave


def test_a_pool_sits_on_the_image_projections_of_every_block(either: Build) -> None:
    sites = [site.name for site in with_experts(either()).sites]
    assert len(sites) == 4 and not any("add_" in name for name in sites)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@both_timesteps
def test_source_tokens_alone_are_routed_and_each_counts_once(
    either: Build, inputs: Inputs, granularity: str, source_timestep: SourceTimestep
) -> None:
    model = either()
    weave = with_experts(model, granularity=granularity)
    model.transformer.enable_gradient_checkpointing()
    args = inputs(model)
    with weave.record() as routing:
        model.velocity(*args, source_timestep).square().mean().backward()
    items = 2 * 8 if granularity == "token" else 2
    assert len(routing.decisions) == 4
    for decisions in routing.decisions.values():
        assert sum(decision.expert_ids.numel() for decision in decisions) == items
    assert routing.usage().sum(dim=1).allclose(torch.ones(4))


def test_without_a_source_experts_are_not_asked(either: Build, inputs: Inputs) -> None:
    model = either()
    model.transformer.requires_grad_(False)  # as injection leaves it
    noise, timestep, text, source = inputs(model)
    alone, beside = model.velocity(noise, timestep, text), model.velocity(noise, timestep, text, source)
    weave = with_experts(model)
    assert torch.equal(model.velocity(noise, timestep, text), alone)
    assert not torch.allclose(model.velocity(noise, timestep, text, source), beside, atol=1e-4)
    with weave.disabled():
        assert torch.equal(model.velocity(noise, timestep, text, source), beside)


@both_timesteps
def test_the_newest_expert_trains_and_checkpointing_changes_no_gradient(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep
) -> None:
    model = either()
    weave = with_experts(model)
    args = inputs(model)

    def gradients() -> list[Tensor]:
        model.transformer.zero_grad()
        torch.manual_seed(3)
        with weave.record() as routing:
            loss = model.velocity(*args, source_timestep).square().mean()
            (loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
        return [p.grad for p in weave.trainable_parameters()]

    plain = gradients()
    assert any(gradient.abs().sum() > 0 for gradient in plain)
    model.transformer.enable_gradient_checkpointing()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_pictures_with_experts_are_deterministic_and_ejecting_gives_the_base_back(either: Build) -> None:
    model = either()
    source = torch.rand(1, 3, 32, 16) * 2 - 1
    settings = {"generator": 0, "height": 16, "width": 32, "steps": 2, "source_timestep": "zero"}
    base = generate(model, ["a red circle"], source, **settings)
    weave = with_experts(model)
    first, second = (generate(model, ["a red circle"], source, **settings) for _ in range(2))
    assert torch.equal(first, second) and not torch.allclose(first, base, atol=1e-4)
    weave.eject()
    assert torch.equal(generate(model, ["a red circle"], source, **settings), base)
    remove_source_stream(model.transformer)
