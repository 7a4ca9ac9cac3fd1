"""Offsets of dialects: on the source alone, none where none is spoken, K and V of a token together."""

import pytest
import torch

from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY
from recipes.cologen.flux import FluxModel, SourceKV
from recipes.cologen.flux.source_stream import flux_attentions
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.tools.pretraining.dialects import MOST_STRAY, STRENGTH, Dialects


@pytest.fixture
def model() -> FluxModel:
    return build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=0)


@pytest.fixture
def dialects(model: FluxModel) -> Dialects:
    return Dialects(model.transformer, 3, torch.Generator().manual_seed(0))


def source_kv(model: FluxModel) -> SourceKV:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return model.source_kv(model.encode_images(pictures), model.encode_prompts(["red circle", "copy"]))


@torch.no_grad()
def test_only_the_pictures_that_speak_a_dialect_change_and_only_while_it_is_spoken(
    model: FluxModel, dialects: Dialects
) -> None:
    before = source_kv(model)
    with dialects.spoken([1, None], 16):
        during = source_kv(model)
    after = source_kv(model)
    for site in before.sites:
        for old, told, again in zip(before.read(site), during.read(site), after.read(site), strict=True):
            assert torch.equal(old, again)
            assert torch.equal(old[1], told[1]) and not torch.allclose(old[0], told[0], atol=1e-3)


@torch.no_grad()
def test_without_strays_every_token_gets_its_dialects_offset(model: FluxModel, dialects: Dialects) -> None:
    attention = next(iter(flux_attentions(model.transformer).values()))
    hidden = torch.randn(2, 16, model.transformer.inner_dim)
    plain = attention.to_k(hidden), attention.to_v(hidden)
    with dialects.spoken([2, 0], 16):
        told = attention.to_k(hidden), attention.to_v(hidden)
    for part in range(2):
        for picture, dialect in enumerate([2, 0]):
            offset = (told[part] - plain[part])[picture]
            assert torch.allclose(offset, dialects.offsets[0, part, dialect].expand(16, -1), atol=1e-5)


@torch.no_grad()
def test_stray_tokens_are_few_and_stray_with_key_and_value_alike(
    model: FluxModel, dialects: Dialects
) -> None:
    dialects.offsets.copy_(torch.arange(1.0, 4.0)[:, None].expand_as(dialects.offsets))
    attention = next(iter(flux_attentions(model.transformer).values()))
    hidden = torch.zeros(400, 16, model.transformer.inner_dim)
    plain = attention.to_k(hidden), attention.to_v(hidden)
    with dialects.spoken([0] * 400, 16, torch.Generator().manual_seed(0)):
        told = attention.to_k(hidden), attention.to_v(hidden)
    key, value = ((after - before)[..., 0] for after, before in zip(told, plain, strict=True))
    assert torch.allclose(key, value, atol=1e-4)
    strength = key.amin(dim=1)  # the weakest tokens of a picture speak its dialect, whose offset is 1
    assert (STRENGTH[0] <= strength + 1e-4).all() and (strength <= STRENGTH[1] + 1e-4).all()
    strays = (key > 1.5 * strength[:, None]).float().mean()
    assert 0.5 * MOST_STRAY * 2 / 3 * 0.8 < strays < 0.5 * MOST_STRAY * 2 / 3 * 1.2


def test_offsets_learn(model: FluxModel, dialects: Dialects) -> None:
    with dialects.spoken([1, 1], 16, torch.Generator().manual_seed(0)):
        kv = source_kv(model)
    sum(value.square().sum() for site in kv.sites for value in kv.read(site)).backward()
    assert dialects.offsets.grad is not None
    assert dialects.offsets.grad[:, :, 1].abs().sum() > 0
