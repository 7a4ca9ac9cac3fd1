"""FLUX.2 klein as a base: the same promises as FLUX.1's, on random weights of the real classes."""

from collections.abc import Callable

import pytest
import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor

import prw
from recipes.cologen.errors import PromptError, ShapeError, SourceStreamError
from recipes.cologen.flux import ImageTokens, SourceKV, TextTokens
from recipes.cologen.flux.families import load_base_model
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.random_flux2 import build_random_flux2, write_random_flux2
from recipes.cologen.flux.sampling import generate
from recipes.cologen.flux.source_stream import has_source_stream, remove_source_stream
from recipes.cologen.flux.two_step import SourceTokens

PROMPTS = ["a red circle", "blue"]
Inputs = tuple[ImageTokens, Tensor, TextTokens, ImageTokens]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("klein")
    write_random_flux2(path, seed=3)
    return path


@pytest.fixture
def klein() -> Flux2Model:
    model = build_random_flux2(double_blocks=2, single_blocks=2)
    for module in model.modules():
        module.requires_grad_(False)
    return model


def inputs(model: Flux2Model, seed: int = 0) -> Inputs:
    """Noise, timestep, text and source; the grids are neither square nor equal."""
    generator = torch.Generator().manual_seed(seed)
    dtype = model.transformer.dtype
    text = model.encode_prompts(PROMPTS)
    noise = torch.randn(2, 6, 128, generator=generator, dtype=torch.float64).to(dtype)
    source = torch.randn(2, 8, 128, generator=generator, dtype=torch.float64).to(dtype)
    times = torch.tensor([0.3, 0.9], dtype=dtype)
    text = TextTokens(text.embeds.to(dtype), text.pooled.to(dtype))
    return ImageTokens(noise, 2, 3), times, text, ImageTokens(source, 4, 2)


def beside(model: Flux2Model, given: Inputs, write: SourceKV | None = None) -> Tensor:
    """Outputs of noise and source in one pass."""
    noise, times, text, source = given
    ids = torch.cat([model.position_ids(noise), model.position_ids(source, source=0)])
    tokens = torch.cat([noise.tokens, source.tokens], dim=1)
    use = SourceTokens(source.tokens.shape[1], write=write)
    return model.run(tokens, ids, times, text, None, use)


class Masked:
    """The stock processor with a mask under which source rows see source columns only."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, stock: Callable[..., object]) -> None:
        self.stock = stock

    def __call__(self, attn, hidden_states, *others, source=None):
        *texts, _, rotary = others  # double blocks have text beside, single ones within
        length = hidden_states.shape[1] + sum(text.shape[1] for text in texts)
        is_source = torch.arange(length) >= length - source.num_in_sequence
        mask = (~is_source[:, None] | is_source[None, :])[None, None]
        return self.stock(attn, hidden_states, *texts, attention_mask=mask, image_rotary_emb=rotary)


def attentions(model: Flux2Model) -> list[torch.nn.Module]:
    return [module for module in model.transformer.modules() if hasattr(module, "set_processor")]


def woken(model: Flux2Model, **settings) -> prw.Weave:
    """A pool of two whose newest expert trains and is heard."""
    torch.manual_seed(1)
    weave = prw.inject(model.transformer, experts=["inpainting", "grounding"], rank=2, **settings)
    with torch.no_grad():
        for name, value in model.transformer.named_parameters():
            if ".prw_B" in name or ".prw_gate" in name:
                value.normal_(std=0.5)
    return weave


def test_a_folder_in_kleins_layout_is_loaded_frozen_with_a_source_stream(folder):
    model = load_base_model(folder, torch.float32)
    assert isinstance(model, Flux2Model) and has_source_stream(model.transformer)
    assert not any(value.requires_grad for part in model.modules() for value in part.parameters())
    assert not any(module.training for part in model.modules() for module in part.modules())
    assert model.max_text_tokens == 128 and not model.reads_guidance and model.vae_scale_factor == 8


def test_without_a_source_klein_draws_what_the_stock_pipeline_draws(folder):
    model = load_base_model(folder, torch.float32)
    drawn = generate(model, PROMPTS, None, generator=4, height=32, width=48, steps=3)
    stock = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt=PROMPTS,
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=1.0,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    ).images
    assert drawn.shape == (2, 3, 32, 48)
    torch.testing.assert_close(drawn / 2 + 0.5, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [(2, 2), (2, 1), (1, 2)], ids=str)
def test_two_steps_equal_one_masked_attention(blocks):
    model = build_random_flux2(double_blocks=blocks[0], single_blocks=blocks[1])
    model.transformer.double()
    given = inputs(model)
    given[0].tokens.requires_grad_()
    given[3].tokens.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        output = beside(model, given)
        return output, *torch.autograd.grad(output.square().sum(), [given[0].tokens, given[3].tokens])

    two_steps = run()
    remove_source_stream(model.transformer)
    for attention in attentions(model):
        attention.set_processor(Masked(attention.processor))
    torch.testing.assert_close(two_steps, run(), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_noise_and_text_never_change_the_source_stream(klein):
    woken(klein)
    noise, times, text, source = inputs(klein)
    other = inputs(klein, seed=9)[0], times, klein.encode_prompts(["x y z", "q"]), source
    for one, another in [
        (klein.source_kv(source, text), klein.source_kv(source, other[2])),
        tuple(_written(klein, given) for given in ((noise, times, text, source), other)),
    ]:
        assert len(one) == 4 and one.sites == another.sites
        for site in one.sites:
            assert all(torch.equal(*pair) for pair in zip(one.read(site), another.read(site), strict=True))


def _written(model: Flux2Model, given: Inputs) -> SourceKV:
    kept = SourceKV()
    beside(model, given, write=kept)
    return kept


def test_cached_source_keys_and_values_equal_uncached(klein):
    woken(klein)
    noise, times, text, source = inputs(klein)
    uncached = klein.velocity(noise, times, text, source, "zero")
    cached = klein.velocity(noise, times, text, klein.source_kv(source, text), "zero")
    assert torch.equal(cached, uncached)
    assert not torch.equal(uncached, klein.velocity(noise, times, text))
    assert not torch.equal(uncached, klein.velocity(noise, times, text, source, "same"))
    with pytest.raises(SourceStreamError, match="timestep 0 only"):
        klein.velocity(noise, times, text, klein.source_kv(source, text), "same")


def test_sources_are_numbered_as_the_pipelines_reference_pictures(klein):
    pictures = [ImageTokens(torch.zeros(1, 6, 128), 2, 3), ImageTokens(torch.zeros(1, 8, 128), 4, 2)]
    ours = torch.cat([klein.position_ids(one, source=place) for place, one in enumerate(pictures)])
    grids = [torch.empty(1, 1, one.rows, one.columns) for one in pictures]
    assert torch.equal(ours, Flux2KleinPipeline._prepare_image_ids(grids)[0])
    noise = klein.position_ids(pictures[0])
    assert torch.equal(noise, Flux2KleinPipeline._prepare_latent_ids(grids[0])[0])


@pytest.mark.parametrize("timestep", ["same", "zero"])
def test_source_tokens_alone_are_routed_and_the_newest_expert_alone_learns(klein, timestep):
    weave = woken(klein)
    noise, times, text, source = inputs(klein)
    with weave.record() as routing:
        klein.velocity(noise, times, text, source, timestep).square().mean().backward()
    assert set(routing.decisions) == {site.name for site in weave.sites} and len(weave.sites) == 4
    for (decision,) in routing.decisions.values():
        assert int((decision.expert_ids >= 0).sum()) == source.tokens.shape[0] * source.tokens.shape[1]
    trained = {id(value) for value in weave.trainable_parameters()}
    with_gradient = {
        id(value) for value in klein.transformer.parameters() if value.grad is not None and value.grad.any()
    }
    assert with_gradient and with_gradient <= trained


@pytest.mark.parametrize("timestep", ["same", "zero"])
def test_recomputed_blocks_give_the_same_gradients(klein, timestep):
    weave = woken(klein)
    given = inputs(klein)
    klein.transformer.train()

    def gradients() -> list[Tensor]:
        klein.transformer.zero_grad()
        torch.manual_seed(0)
        klein.velocity(*given[:3], given[3], timestep).square().mean().backward()
        return [value.grad.clone() for value in weave.trainable_parameters() if value.grad is not None]

    plain = gradients()
    klein.transformer.enable_gradient_checkpointing()
    assert len(plain) > 8
    torch.testing.assert_close(gradients(), plain, rtol=0, atol=0)


def test_a_long_prompt_is_refused_or_cut_as_the_pipeline_cuts(folder):
    model = load_base_model(folder, torch.float32, max_text_tokens=64)
    long = "red " * 40
    with pytest.raises(PromptError, match=r"has \d+ tokens .* at most 64"):
        model.encode_prompts([long])
    assert model.too_long(["red", long]) == [long]
    model.long_prompts = "truncate"
    expected, _ = model.pipeline().encode_prompt(long, max_sequence_length=64)
    assert torch.equal(model.encode_prompts([long]).embeds, expected)


def test_pictures_keep_their_height_and_width(klein):
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    tokens = klein.encode_images(pixels)
    assert (tokens.rows, tokens.columns, *tokens.tokens.shape) == (2, 3, 2, 6, 128)
    assert klein.decode(tokens).shape == (2, 3, 32, 48)
    with pytest.raises(ShapeError, match="multiples of 16"):
        klein.encode_images(pixels[..., :40])


def test_the_same_seed_writes_the_same_base(folder, tmp_path):
    write_random_flux2(tmp_path, seed=3)
    one, other = (load_base_model(path).transformer.state_dict() for path in (folder, tmp_path))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
