"""Several sources: consecutive images with numbers of their own, in one stream that noise and text read."""

import pytest
import torch

from recipes.cologen.errors import ShapeError
from recipes.cologen.flux import FluxModel, ImageTokens
from recipes.cologen.flux.sampling import generate
from tests.recipes.cologen.flux.conftest import Build, Inputs


def second(source: ImageTokens) -> ImageTokens:
    """Another picture, of another size."""
    tokens = torch.randn(
        source.tokens.shape[0], 3, source.tokens.shape[2], generator=torch.Generator().manual_seed(5)
    )
    return ImageTokens(tokens, rows=1, columns=3)


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_a_list_of_one_is_that_one_and_a_second_changes_the_velocity(
    either: Build, inputs: Inputs, source_timestep: str
) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    alone = model.velocity(noise, timestep, text, source, source_timestep)
    assert torch.equal(model.velocity(noise, timestep, text, [source], source_timestep), alone)
    both = model.velocity(noise, timestep, text, (source, second(source)), source_timestep)
    assert both.shape == noise.tokens.shape and not torch.allclose(both, alone)
    turned = model.velocity(noise, timestep, text, (second(source), source), source_timestep)
    assert not torch.allclose(both, turned)  # which is first and which second is told by their numbers


def test_sources_are_numbered_from_one_and_keep_their_own_grids(build: Build, inputs: Inputs) -> None:
    model = build()
    noise, timestep, text, source = inputs(model)
    seen = {}

    def watch(module, arguments, keywords):
        seen.update(keywords)

    model.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    model.velocity(noise, timestep, text, (source, second(source), source))
    ids = seen["img_ids"]
    counts = [noise.tokens.shape[1], 8, 3, 8]
    assert [int((ids[:, 0] == number).sum()) for number in range(4)] == counts
    assert ids[6:14, 1:].amax(0).tolist() == [3, 1] and ids[14:17, 1:].amax(0).tolist() == [0, 2]
    assert seen["joint_attention_kwargs"]["source"].num_in_sequence == 19


def test_kept_keys_and_values_of_two_serve_as_the_two_do(either: Build, inputs: Inputs) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    pair = (source, second(source))
    kept = model.source_kv(pair, text)
    read = model.velocity(noise, timestep, text, kept, "zero")
    assert torch.equal(read, model.velocity(noise, timestep, text, pair, "zero"))
    assert {kept.read(site).key.shape[1] for site in kept.sites} == {11}


def test_every_source_needs_a_picture_for_every_sample(build: Build, inputs: Inputs) -> None:
    model = build()
    noise, timestep, text, source = inputs(model)
    short = source.with_tokens(source.tokens[:1])
    with pytest.raises(ShapeError, match="got 1 sources for 2 timesteps"):
        model.velocity(noise, timestep, text, (source, short))
    for empty in ((), []):
        with pytest.raises(ShapeError, match="empty list of sources"):
            model.velocity(noise, timestep, text, empty)


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_pictures_are_drawn_from_several_sources(build: Build, source_timestep: str) -> None:
    model: FluxModel = build()
    side = 2 * model.vae_scale_factor
    first, other = torch.rand(1, 3, 2 * side, 3 * side) * 2 - 1, torch.rand(1, 3, side, side) * 2 - 1
    sampling = {"height": 2 * side, "width": 3 * side, "steps": 2, "source_timestep": source_timestep}

    def drawn(source):
        return generate(model, ["a red circle"], source, generator=3, **sampling)

    assert torch.equal(drawn([first]), drawn(first))
    assert not torch.equal(drawn([first, other]), drawn(first))
