"""No base is trained on longer prompts than the pipelines that draw with it read."""

import json

import pytest
from diffusers import FluxPipeline

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.model import MOST_TEXT_TOKENS
from recipes.cologen.flux import FluxModel
from recipes.cologen.flux.flux2_model import MAX_TEXT_TOKENS
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from tests.recipes.cologen.training.conftest import make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base whose tokenizer says that it reads more than FluxPipeline takes."""
    path = tmp_path_factory.mktemp("long")
    save_tiny_flux(build_tiny_flux(["red"], width=32, heads=2, axes=(4, 6, 6), text_width=16), path)
    settings = json.loads((path / "tokenizer_2/tokenizer_config.json").read_text())
    settings["model_max_length"] = 1024
    (path / "tokenizer_2/tokenizer_config.json").write_text(json.dumps(settings))
    return path


def check(pipeline, length):
    size = 16 * pipeline.vae_scale_factor
    pipeline.check_inputs("red", None, size, size, max_sequence_length=length)


def test_the_limit_of_the_settings_is_that_of_the_pipelines(folder):
    pipeline: FluxPipeline = FluxModel.load(folder).pipeline()
    check(pipeline, MOST_TEXT_TOKENS)
    with pytest.raises(ValueError, match="max_sequence_length"):
        check(pipeline, MOST_TEXT_TOKENS + 1)
    assert MAX_TEXT_TOKENS == MOST_TEXT_TOKENS


def test_more_is_refused_in_a_line_that_says_why():
    assert make_config("x", "base.max_text_tokens=512").base.max_text_tokens == 512
    with pytest.raises(ConfigError, match=r"base\.max_text_tokens: .*at most 512 .*got 513"):
        make_config("x", "base.max_text_tokens=513")


def test_a_tokenizer_that_reads_more_is_not_followed(folder):
    assert FluxModel.load(folder).max_text_tokens == MOST_TEXT_TOKENS
