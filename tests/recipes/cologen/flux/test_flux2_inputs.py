"""What FLUX.2 klein is given: prompts cut as its pipeline cuts, sources numbered as its references."""

import pytest
import torch
from diffusers import Flux2KleinPipeline

from recipes.cologen.errors import PromptError
from recipes.cologen.flux import ImageTokens
from recipes.cologen.tools.random_flux2 import build_random_flux2


def test_a_long_prompt_is_refused_or_cut_as_the_pipeline_cuts():
    model = build_random_flux2(max_text_tokens=64)
    long = "red " * 40
    with pytest.raises(PromptError, match=r"has \d+ tokens .* at most 64"):
        model.encode_prompts([long])
    assert model.too_long(["red", long]) == [long]
    model.long_prompts = "truncate"
    expected, _ = model.pipeline().encode_prompt(long, max_sequence_length=64)
    assert torch.equal(model.encode_prompts([long]).embeds, expected)


def test_sources_are_numbered_as_the_pipelines_reference_pictures():
    model = build_random_flux2()
    pictures = [ImageTokens(torch.zeros(1, 6, 128), 2, 3), ImageTokens(torch.zeros(1, 8, 128), 4, 2)]
    ours = torch.cat([model.position_ids(one, source=place) for place, one in enumerate(pictures)])
    grids = [torch.empty(1, 1, one.rows, one.columns) for one in pictures]
    assert torch.equal(ours, Flux2KleinPipeline._prepare_image_ids(grids)[0])
    assert torch.equal(model.position_ids(pictures[0]), Flux2KleinPipeline._prepare_latent_ids(grids[0])[0])
