"""The base that ships with the recipe: whole, fluent in the world's words, and able to draw what they say."""

import numpy as np
import pytest
import torch

from recipes.cologen.config.run import load_config
from recipes.cologen.data import oracle
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY
from recipes.cologen.flux import FluxModel, generate
from recipes.cologen.flux.vocabulary import unknown_words
from recipes.cologen.tools.pretraining.scores import HELD_OUT
from recipes.cologen.tools.pretraining.tasks import text_to_image
from recipes.cologen.training.validation.scores import to_pictures


@pytest.fixture(scope="module")
def base() -> FluxModel:
    """The base of the tiny config, loaded as training loads it."""
    return FluxModel.load(load_config("tiny").base_path, torch.float32)


def test_its_weights_are_finite_numbers(base: FluxModel) -> None:
    for name, value in base.transformer.state_dict().items():
        assert torch.isfinite(value).all(), name
    for module in base.modules():
        assert all(torch.isfinite(value).all() for value in module.parameters())


def test_it_reads_every_word_of_the_vocabulary(base: FluxModel) -> None:
    assert unknown_words(base.tokenizer_2, " ".join(VOCABULARY)) == ()
    for word in VOCABULARY:
        assert len(base.tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    assert base.tokenizer_2.model_max_length >= MAX_TEXT_TOKENS


def test_it_draws_what_captions_say(base: FluxModel) -> None:
    rng = np.random.default_rng((HELD_OUT, 1))  # draws that pretraining did not make
    captions = [text_to_image(rng) for _ in range(8)]
    drawn = generate(
        base,
        [example.prompt for example in captions],
        None,
        steps=12,
        generator=0,
        height=16,
        width=16,
        source_timestep="zero",
    )
    right = [
        oracle.shows_caption(image, example)
        for image, example in zip(to_pictures(drawn), captions, strict=True)
    ]
    assert sum(right) >= 6
