"""FLUX.2 klein against diffusers' own: prompts, latents, pictures, cached references; klein-4B's size."""

import math

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from hypothesis import given
from hypothesis import strategies as st

import prw
from recipes.cologen.config.run import load_config
from recipes.cologen.errors import ShapeError
from recipes.cologen.flux import Flux2Model, SourceKV, TextTokens, generate
from recipes.cologen.flux.source_stream import flux_attentions, install_source_stream, remove_source_stream
from recipes.cologen.flux.two_step import SourceTokens
from recipes.cologen.tools.random_flux2 import build_random_flux2
from tests.recipes.cologen.flux.conftest import Inputs

PROMPTS = ["a red circle", "ein Rätsel: 谜"]


@pytest.fixture(scope="module")
def shared() -> Flux2Model:
    """A base for tests that leave it as it is."""
    return build_random_flux2()


@pytest.fixture
def model() -> Flux2Model:
    """A base of the test's own."""
    return build_random_flux2()


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_without_a_source_the_pictures_are_the_stock_pipelines(guidance: float | None) -> None:
    model = build_random_flux2(guidance_embeds=guidance is not None)
    ours = generate(model, PROMPTS, generator=7, height=48, width=32, steps=3, guidance=guidance)
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    if guidance is not None:  # klein's pipeline never passes the scale that a base of FLUX.2-dev's kind reads
        forward = model.transformer.forward
        scale = torch.full([2], guidance)
        model.transformer.forward = lambda **given: forward(**{**given, "guidance": scale})
    theirs = pipeline(
        prompt=PROMPTS,
        height=48,
        width=32,
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=model.max_text_tokens,
        output_type="pt",
    ).images
    assert torch.equal(ours / 2 + 0.5, theirs)


def test_prompts_are_encoded_as_the_pipeline_does(shared: Flux2Model) -> None:
    theirs, _ = shared.pipeline().encode_prompt(PROMPTS, max_sequence_length=shared.max_text_tokens)
    text = shared.encode_prompts(PROMPTS)
    assert torch.equal(text.embeds, theirs) and text.embeds.shape == (2, 128, 48)
    assert text.pooled.shape == (2, 0)
    assert not torch.allclose(theirs[0], theirs[1])


def test_the_language_models_head_is_left_out(model: Flux2Model) -> None:
    model.text_encoder.lm_head.register_forward_hook(lambda *_: pytest.fail("logits that nobody reads"))
    model.encode_prompts(PROMPTS)


@given(rows=st.integers(1, 3), columns=st.integers(1, 3), batch=st.integers(1, 2))
def test_pictures_become_the_pipelines_latents_and_come_back(rows: int, columns: int, batch: int) -> None:
    model = MODEL
    pixels = torch.rand(batch, 3, 16 * rows, 16 * columns) * 2 - 1
    image = model.encode_images(pixels)
    assert (image.rows, image.columns) == (rows, columns)
    latents = model.pipeline()._encode_vae_image(pixels, generator=None)
    assert torch.equal(image.tokens, Flux2KleinPipeline._pack_latents(latents))
    mean = model.vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(model.vae.bn.running_var.view(1, -1, 1, 1) + model.vae.config.batch_norm_eps)
    plain = Flux2KleinPipeline._unpatchify_latents(latents * std + mean)
    with torch.no_grad():
        expected = model.vae.decode(plain, return_dict=False)[0]
    assert torch.equal(model.decode(image), expected) and expected.shape == pixels.shape


MODEL = build_random_flux2()
"""For hypothesis, which wants no fixtures."""


@pytest.mark.parametrize("shape", [(1, 3, 32, 40), (1, 3, 40, 32), (1, 1, 32, 32)])
def test_pictures_of_odd_sizes_are_refused(shared: Flux2Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="multiples of 16"):
        shared.encode_images(torch.zeros(shape))


def test_the_shift_depends_on_tokens_and_steps(shared: Flux2Model) -> None:
    """The anchors of diffusers' fit: mu at 10 and at 200 steps, and beyond 4300 tokens at any."""
    assert math.isclose(shared.schedule_shift(1024, 200), 0.00016927 * 1024 + 0.45666666)
    assert math.isclose(shared.schedule_shift(1024, 10), 8.73809524e-05 * 1024 + 1.89833333)
    assert shared.schedule_shift(5000, 10) == shared.schedule_shift(5000, 200)


def test_zero_is_what_diffusers_own_cached_references_give(model: Flux2Model, inputs: Inputs) -> None:
    """`Flux2KleinKVPipeline` extracts references at timestep 0 that see themselves alone: the same idea."""
    noise, timestep, text, source = inputs(model)
    ours = model.velocity(noise, timestep, text, source, "zero")
    kept = model.source_kv(source, text)
    remove_source_stream(model.transformer)
    for attn in flux_attentions(model.transformer).values():
        fused = hasattr(attn, "to_qkv_mlp_proj")
        attn.set_processor(Flux2KVParallelSelfAttnProcessor() if fused else Flux2KVAttnProcessor())
    ids = [model.position_ids(source, source=0), model.position_ids(noise)]
    stock = {
        "timestep": timestep,
        "encoder_hidden_states": text.embeds,
        "txt_ids": Flux2KleinPipeline._prepare_text_ids(text.embeds),
        "return_dict": False,
    }
    theirs, cache = model.transformer(
        hidden_states=torch.cat([source.tokens, noise.tokens], dim=1),
        img_ids=torch.cat(ids),
        kv_cache_mode="extract",
        num_ref_tokens=source.tokens.shape[1],
        **stock,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    layers = [*cache.double_block_caches, *cache.single_block_caches]
    for site, layer in zip(kept.sites, layers, strict=True):
        torch.testing.assert_close(tuple(kept.read(site)), layer.get(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompt", ["another", ""])
def test_no_prompt_reaches_the_source_stream(shared: Flux2Model, inputs: Inputs, prompt: str) -> None:
    """Nothing is pooled, so what is kept of a source serves every prompt; with `same`, every noise too."""
    noise, timestep, text, source = inputs(shared)
    other = shared.encode_prompts([prompt] * 2)
    first, second = shared.source_kv(source, text), shared.source_kv(source, other)
    beside: list[SourceKV] = [SourceKV(), SourceKV()]
    ids = torch.cat([shared.position_ids(noise), shared.position_ids(source, source=0)])
    for kv, said in zip(beside, (text, other), strict=True):
        tokens = torch.cat([torch.randn_like(noise.tokens), source.tokens], dim=1)
        shared.run(tokens, ids, timestep, said, None, SourceTokens(8, write=kv))
    assert len(first) == 3
    for site in first.sites:
        for one, another in ((first, second), (beside[0], beside[1])):
            assert all(torch.equal(x, y) for x, y in zip(one.read(site), another.read(site), strict=True))
    assert not torch.equal(first.read(first.sites[-1]).key, beside[0].read(first.sites[-1]).key)


def test_a_token_of_a_fused_block_is_projected_once(
    shared: Flux2Model, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    attn = shared.transformer.single_transformer_blocks[0].attn
    hook = attn.to_qkv_mlp_proj.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    noise, timestep, text, source = inputs(shared)
    shared.velocity(noise, timestep, text, source, "same")
    hook.remove()
    assert seen == [text.embeds.shape[1] + 6, 8]


def test_the_pool_on_klein_4b_has_25_sites_whose_fused_ones_adapt_keys_and_values_alone() -> None:
    """FLUX.2-klein-4B as it is published, without weights: 5 double and 20 single blocks."""
    with init_empty_weights():
        klein = Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
    assert sum(parameter.numel() for parameter in klein.parameters()) == 3_875_544_576
    install_source_stream(klein)
    settings = load_config("flux2_klein").pool.model_dump()
    weave = prw.inject(klein, target="kv", experts=["inpainting"], **settings)
    assert [site.name for site in weave.sites] == list(flux_attentions(klein))
    gates = 2 * 3072 * 25
    keys_and_values = 2 * 128 * (3072 + 3072)
    trained = sum(parameter.numel() for parameter in weave.trainable_parameters())
    assert trained - gates == 25 * keys_and_values == 39_321_600


def test_text_tokens_without_a_pooled_vector_are_cut_like_others(shared: Flux2Model, inputs: Inputs) -> None:
    noise, timestep, text, source = inputs(shared)
    one = TextTokens(text.embeds[:1], text.pooled[:1])
    alone = shared.velocity(
        noise.with_tokens(noise.tokens[:1]), timestep[:1], one, source.with_tokens(source.tokens[:1])
    )
    both = shared.velocity(noise, timestep, text, source)
    torch.testing.assert_close(alone, both[:1], rtol=1e-4, atol=1e-5)
