"""What a cache gives is what the encoders would have made, and only of the very same inputs and weights."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.cologen.caching.encoder import Encoder, Stores, open_encoder
from recipes.cologen.caching.fingerprints import picture_key, prompt_key, text_fingerprint, vae_fingerprint
from recipes.cologen.caching.store import TensorStore
from recipes.cologen.config.data import CacheSettings
from recipes.cologen.flux.tiny import build_tiny_flux

WORDS = ["red", "blue", "circle", "square", "on", "tan"]
PROMPTS = ["red circle on tan", "blue square", "red circle on tan", ""]
CPU = torch.device("cpu")


def with_real_vae(seed=0, **shape):
    """A tiny FLUX whose VAE is a real one, which gives a picture other last bits beside others."""
    model = build_tiny_flux(WORDS, width=32, heads=2, axes=(4, 6, 6), text_width=16, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=4,
            shift_factor=0.1,
            scaling_factor=0.3,
        )
    for module in model.modules():
        module.eval().requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def model():
    return with_real_vae()


def pictures(count, height, width, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    )


def keys_of(pixels):
    return [picture_key(one.permute(1, 2, 0).numpy()) for one in pixels]


def cached(model, folder, **options):
    return open_encoder(model, CPU, CacheSettings(folder=str(folder)), **options)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_empty_and_full_caches_give_what_encoding_each_alone_gives(
    model, tmp_path_factory, count, grid, fixed
):
    folder = tmp_path_factory.mktemp("cache")
    pixels = pictures(count, 4 * grid[0], 4 * grid[1])
    keys = [key if here else None for key, here in zip(keys_of(pixels), fixed, strict=False)]
    expected = Encoder(model, CPU, at_once=1).images(pixels)
    cold = cached(model, folder, at_once=1)
    seen = [cold.images(pixels, keys), cold.images(pixels, keys)]
    cold.flush()
    seen.append(cached(model, folder, at_once=1).images(pixels, keys))
    for image in seen:
        assert (image.rows, image.columns) == grid
        assert torch.equal(image.tokens, expected.tokens)


def test_prompts_come_back_bit_equal(model, tmp_path):
    expected = Encoder(model, CPU, at_once=1).prompts(PROMPTS)
    keys = [prompt_key(prompt) for prompt in PROMPTS]
    cold = cached(model, tmp_path)
    cold.prompts(PROMPTS, keys)
    cold.flush()
    assert len(cold.stores.text) == 3
    text = cached(model, tmp_path).prompts(PROMPTS, keys)
    assert torch.equal(text.embeds, expected.embeds) and torch.equal(text.pooled, expected.pooled)


def test_a_plain_encoder_does_what_the_model_does(model):
    pixels = pictures(3, 8, 12)
    together = model.encode_images(pixels.float() / 127.5 - 1.0)
    assert torch.equal(Encoder(model, CPU).images(pixels).tokens, together.tokens)
    halves = Encoder(model, CPU, at_once=2).images(pixels)
    assert torch.allclose(halves.tokens, together.tokens, atol=1e-5)


def test_when_all_is_kept_no_encoder_runs(tmp_path, monkeypatch):
    model, pixels = with_real_vae(), pictures(2, 8, 12)
    keys, texts = keys_of(pixels), [prompt_key(prompt) for prompt in PROMPTS]
    first = cached(model, tmp_path)
    expected = first.images(pixels, keys).tokens, first.prompts(PROMPTS, texts).embeds
    first.flush()
    again = cached(model, tmp_path)

    def refuse(*arguments, **options):
        raise AssertionError("an encoder ran")

    for module in (model.vae, model.text_encoder, model.text_encoder_2):
        monkeypatch.setattr(module, "forward", refuse)
    monkeypatch.setattr(model.vae, "encode", refuse)
    assert torch.equal(again.images(pixels, keys).tokens, expected[0])
    assert torch.equal(again.prompts(PROMPTS, texts).embeds, expected[1])
    with pytest.raises(AssertionError, match="an encoder ran"):
        again.images(pictures(1, 8, 12, seed=1), ["another"])


def test_a_damaged_entry_is_encoded_again(model, tmp_path):
    pixels = pictures(1, 8, 12)
    first = cached(model, tmp_path)
    expected = first.images(pixels, keys_of(pixels)).tokens
    first.flush()
    (path,) = first.stores.latents.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = []
    again = cached(model, tmp_path, announce=said.append)
    assert torch.equal(again.images(pixels, keys_of(pixels)).tokens, expected)
    assert len(said) == 1 and "damaged" in said[0]


def changed(part, model):
    if part == "vae weights":
        next(model.vae.parameters()).view(-1)[0].add_(1e-3)
    elif part == "vae settings":
        model.vae.register_to_config(scaling_factor=0.31)
    elif part == "vae format":
        model.vae.bfloat16()
    elif part == "t5 weights":
        next(model.text_encoder_2.parameters()).view(-1)[-1].add_(1e-3)
    elif part == "clip weights":
        next(model.text_encoder.parameters()).view(-1)[-1].add_(1e-3)
    elif part == "length":
        model.max_text_tokens += 1
    elif part == "words":
        other = build_tiny_flux([*WORDS[:-1], "navy"], width=32, heads=2, axes=(4, 6, 6), text_width=16)
        model.tokenizer_2 = other.tokenizer_2
    return vae_fingerprint(model), text_fingerprint(model)


@pytest.mark.parametrize("part", ["vae weights", "vae settings", "vae format"])
def test_another_vae_has_other_keys(part, model):
    latents, text = changed(part, with_real_vae())
    assert latents != vae_fingerprint(model) and text == text_fingerprint(model)


@pytest.mark.parametrize("part", ["t5 weights", "clip weights", "length", "words"])
def test_another_text_encoder_has_other_keys(part, model):
    latents, text = changed(part, with_real_vae())
    assert latents == vae_fingerprint(model) and text != text_fingerprint(model)


def test_the_same_base_loaded_again_and_used_has_the_same_keys(model):
    again = with_real_vae()
    again.tokenize(PROMPTS)
    assert vae_fingerprint(again) == vae_fingerprint(model)
    assert text_fingerprint(again) == text_fingerprint(model)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_keys_tell_pictures_apart_by_shape_and_by_every_pixel(height, width, data):
    picture = np.zeros((height, width, 3), np.uint8)
    other = picture.copy()
    place = tuple(data.draw(st.integers(0, side - 1)) for side in picture.shape)
    other[place] = 1
    assert picture_key(picture) != picture_key(other)
    assert picture_key(picture) == picture_key(np.asfortranarray(picture))
    turned = np.zeros((width, height, 3), np.uint8)
    assert (picture_key(turned) == picture_key(picture)) == (height == width)


def test_nothing_without_a_key_is_kept(model, tmp_path):
    latents = TensorStore(tmp_path)
    encoder = Encoder(model, CPU, Stores(latents=latents))
    pixels = pictures(2, 8, 8)
    encoder.images(pixels, [None, None])
    encoder.images(pixels, [None, "a"])
    assert len(latents) == 1
