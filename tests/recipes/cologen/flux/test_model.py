"""Velocity with and without a source, in both source timesteps; text and pictures as in FluxPipeline."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recipes.cologen.errors import PromptError, ShapeError, SourceStreamError
from recipes.cologen.flux import (
    FluxModel,
    ImageTokens,
    SourceKV,
    SourceTimestep,
    TextTokens,
    image_position_ids,
    remove_source_stream,
)
from recipes.cologen.flux.model import run_transformer
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import SourceTokens, flux_attentions

Build = Callable[..., FluxModel]
Inputs = Callable[..., tuple]
both_timesteps = pytest.mark.parametrize("source_timestep", ["same", "zero"])


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_zero_reads_what_a_pass_at_timestep_zero_holds(
    either: Build, inputs: Inputs, guidance: float | None
) -> None:
    """The source alone, without text tokens, has the same K and V as beside noise and text at timestep 0."""
    model = either(guidance_embeds=guidance is not None)
    noise, _, text, source = inputs(model)
    alone, beside = model.source_kv(source, text, guidance), SourceKV()
    ids = torch.cat([model.position_ids(noise), model.position_ids(source, source=0)])
    tokens = torch.cat([noise.tokens, source.tokens], dim=1)
    use = SourceTokens(8, write=beside)
    model.run(tokens, ids, torch.zeros(2), text, guidance, use)
    assert alone.sites == beside.sites == tuple(flux_attentions(model.transformer))
    for site in alone.sites:
        torch.testing.assert_close(alone.read(site), beside.read(site), rtol=1e-4, atol=1e-5)


def test_same_is_one_pass_over_noise_and_source_numbered_0_and_1(build: Build, inputs: Inputs) -> None:
    model = build()
    noise, timestep, text, source = inputs(model)
    ids = torch.cat([image_position_ids(2, 3, index=0), image_position_ids(4, 2, index=1)])
    tokens = torch.cat([noise.tokens, source.tokens], dim=1)
    whole = run_transformer(model.transformer, tokens, ids, timestep, text, None, SourceTokens(8))
    assert torch.equal(model.velocity(noise, timestep, text, source, "same"), whole[:, :6])


def test_at_timestep_zero_same_and_zero_agree(either: Build, inputs: Inputs) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    still = torch.zeros_like(timestep)
    same, zero = (model.velocity(noise, still, text, source, mode) for mode in ("same", "zero"))
    torch.testing.assert_close(same, zero, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        model.velocity(noise, timestep, text, source, "same"),
        model.velocity(noise, timestep, text, source, "zero"),
        atol=1e-3,
    )


def test_cached_source_keys_and_values_serve_every_timestep(either: Build, inputs: Inputs) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    cached = model.source_kv(source, text)
    for t in (timestep, timestep / 3):
        uncached = model.velocity(noise, t, text, source, "zero")
        assert torch.equal(model.velocity(noise, t, text, cached, "zero"), uncached)


def test_the_source_pass_spends_nothing_on_text_tokens(either: Build, inputs: Inputs) -> None:
    model = either()
    _, _, text, source = inputs(model)
    lengths: list[int] = []
    model.transformer.context_embedder.register_forward_hook(
        lambda module, args, output: lengths.append(output.shape[1])
    )
    model.source_kv(source, text)
    assert lengths == [0]


@both_timesteps
def test_guidance_enters_the_velocity(either: Build, inputs: Inputs, source_timestep: SourceTimestep) -> None:
    model = either(guidance_embeds=True)
    args = inputs(model)
    low, high = (model.velocity(*args, source_timestep, guidance=scale) for scale in (1.0, 4.0))
    assert not torch.allclose(low, high, atol=1e-4)


@both_timesteps
def test_checkpointing_changes_neither_velocity_nor_gradients(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep
) -> None:
    model = either()
    args = inputs(model)

    def run() -> tuple[Tensor, list[Tensor | None]]:
        model.transformer.zero_grad()
        velocity = model.velocity(*args, source_timestep)
        velocity.square().mean().backward()
        return velocity.detach(), [p.grad for p in model.transformer.parameters()]

    velocity, gradients = run()
    model.transformer.enable_gradient_checkpointing()
    again, gradients_again = run()
    assert torch.equal(velocity, again)
    for plain, checkpointed in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-8)


@both_timesteps
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_reaches_the_source_picture(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep, checkpointing: bool
) -> None:
    """A cached K/V pair that had lost its gradient would leave the experts of the source untrained."""
    model = either()
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    noise, timestep, text, source = inputs(model)
    source.tokens.requires_grad_()
    model.velocity(noise, timestep, text, source, source_timestep).square().mean().backward()
    assert source.tokens.grad is not None and source.tokens.grad.abs().sum() > 0


def test_reentrant_checkpointing_is_refused_where_it_would_stop_the_training(
    either: Build, inputs: Inputs
) -> None:
    model = either()
    model.transformer.enable_gradient_checkpointing(
        lambda module, *args: checkpoint(module, *args, use_reentrant=True)
    )
    with pytest.raises(SourceStreamError, match="use_reentrant=False"):
        model.velocity(*inputs(model), "zero")


# Stock FLUX in autocast has bfloat16 activations and float32 norm weights; torch says so once.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@both_timesteps
@pytest.mark.parametrize("autocast", [False, True])
def test_lower_precision_gives_nearly_the_same(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep, autocast: bool
) -> None:
    model = either()
    args = inputs(model)
    exact = model.velocity(*args, source_timestep)
    if not autocast:
        model.transformer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rough = model.velocity(*args, source_timestep)
    assert rough.dtype is torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)


@both_timesteps
def test_a_sample_does_not_depend_on_its_batch_mates(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep
) -> None:
    model = either()
    noise, timestep, text, source = inputs(model, batch=3)
    together = model.velocity(noise, timestep, text, source, source_timestep)
    for i in range(3):
        one = slice(i, i + 1)
        alone = model.velocity(
            noise.with_tokens(noise.tokens[one]),
            timestep[one],
            TextTokens(text.embeds[one], text.pooled[one]),
            source.with_tokens(source.tokens[one]),
            source_timestep,
        )
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@both_timesteps
def test_rows_and_columns_are_not_interchangeable(
    either: Build, inputs: Inputs, source_timestep: SourceTimestep
) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    turned_noise = ImageTokens(noise.tokens, noise.columns, noise.rows)
    turned_source = ImageTokens(source.tokens, source.columns, source.rows)
    upright = model.velocity(noise, timestep, text, source, source_timestep)
    for turned in ((turned_noise, source), (noise, turned_source)):
        velocity = model.velocity(turned[0], timestep, text, turned[1], source_timestep)
        assert not torch.allclose(upright, velocity, atol=1e-5)


def test_prompts_are_encoded_as_flux_pipeline_does(build: Build) -> None:
    model = build()
    prompts = ["a red circle, on the left", "blue"]
    text = model.encode_prompts(prompts)
    embeds, pooled, _ = model.pipeline().encode_prompt(prompts, max_sequence_length=model.max_text_tokens)
    assert torch.equal(text.embeds, embeds) and torch.equal(text.pooled, pooled)
    assert text.embeds.shape == (2, 8, 16)
    assert not torch.allclose(pooled[0], pooled[1])


def test_both_text_encoders_get_gradients(build: Build) -> None:
    model = build()
    text = model.encode_ids(model.tokenize(["a red circle"]))
    (text.embeds.sum() + text.pooled.square().sum()).backward()
    for encoder in (model.text_encoder, model.text_encoder_2):
        assert all(p.grad is not None for p in encoder.parameters())


def test_a_prompt_that_does_not_fit_is_refused(build: Build) -> None:
    model = build()
    assert model.tokenize(["red " * 7]).t5.shape == (1, 8)
    with pytest.raises(PromptError, match=r"9 T5 tokens.*at most 8"):
        model.tokenize(["blue", "red " * 8])


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), scale=st.sampled_from([1.0, 0.5]))
def test_pictures_survive_encoding(rows: int, columns: int, scale: float) -> None:
    model = tiny_pictures(scale)
    pixels = torch.rand(2, 3, 4 * rows, 4 * columns) * 2 - 1
    image = model.encode_images(pixels)
    assert (image.rows, image.columns) == (rows, columns)
    assert image.tokens.shape == (2, rows * columns, 48)
    torch.testing.assert_close(model.decode(image), pixels, rtol=0, atol=1e-6)


def tiny_pictures(scale: float) -> FluxModel:
    """Give a model of a VAE alone, whose latents are scaled and shifted."""
    vae = PixelUnshuffleVAE(scaling_factor=scale, shift_factor=0.25)
    return FluxModel(None, vae, None, None, None, None, None, 0)


@pytest.mark.parametrize("shape", [(1, 3, 16, 18), (1, 3, 18, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_pictures_of_odd_sizes_are_refused(build: Build, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="multiples of 4"):
        build().encode_images(torch.zeros(shape))


def test_cached_keys_and_values_are_refused_where_they_change_with_the_timestep(
    either: Build, inputs: Inputs
) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    with pytest.raises(SourceStreamError, match='source_timestep="zero"'):
        model.velocity(noise, timestep, text, model.source_kv(source, text), "same")


def test_a_source_without_source_stream_is_refused(either: Build, inputs: Inputs) -> None:
    model = either()
    remove_source_stream(model.transformer)
    with pytest.raises(SourceStreamError, match="install_source_stream"):
        model.velocity(*inputs(model))


def test_every_sample_needs_a_source(either: Build, inputs: Inputs) -> None:
    model = either()
    noise, timestep, text, source = inputs(model)
    with pytest.raises(ShapeError, match="1 sources for 2"):
        model.velocity(noise, timestep, text, source.with_tokens(source.tokens[:1]))
