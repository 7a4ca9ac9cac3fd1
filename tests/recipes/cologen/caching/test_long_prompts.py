"""A base that refuses long prompts refuses them also where a run that cut them has filled the cache."""

import pytest
import torch

from recipes.cologen.caching.encoder import open_encoder
from recipes.cologen.caching.fingerprints import prompt_key
from recipes.cologen.config.data import CacheSettings
from recipes.cologen.data.record import Example
from recipes.cologen.errors import PromptError
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.training.input.batches import collate
from recipes.cologen.training.input.filling import RecordBatches, fill

LONG, SHORT = " ".join(["red circle on tan"] * 20), "red circle"


@pytest.fixture(scope="module")
def model():
    return build_tiny_flux(["red", "circle", "on", "tan"], width=32, heads=2, axes=(4, 6, 6), text_width=16)


@pytest.fixture
def reading(model, tmp_path, monkeypatch):
    """An encoder on a cache that a run which cut long prompts has filled, now with the given rule."""

    def opened(long_prompts):
        monkeypatch.setattr(model, "long_prompts", long_prompts)
        return open_encoder(model, torch.device("cpu"), CacheSettings(folder=str(tmp_path)))

    cutting = opened("truncate")
    keys = [prompt_key(prompt) for prompt in (LONG, SHORT)]
    cut = cutting.prompts([LONG, SHORT], keys)
    cutting.flush()
    return opened, keys, cut


def test_a_long_prompt_is_refused_and_a_short_one_is_still_read(reading):
    opened, keys, cut = reading
    encoder = opened("refuse")
    assert torch.equal(encoder.prompts([SHORT], keys[1:]).embeds, cut.embeds[1:])
    with pytest.raises(PromptError, match=r"base\.long_prompts=truncate"):
        encoder.prompts([LONG, SHORT], keys)


def test_a_run_that_cuts_reads_both(reading):
    opened, keys, cut = reading
    assert torch.equal(opened("truncate").prompts([LONG, SHORT], keys).embeds, cut.embeds)


class OneExample(torch.utils.data.Dataset):
    """What filling takes of one record."""

    def __init__(self, prompt):
        picture = torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()
        self.example = Example("a", "control", "canny", picture, picture, prompt, fixed=frozenset({"prompt"}))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return RecordBatches((collate([self.example], keyed=True),))


def test_filling_ahead_refuses_it_as_well(reading):
    opened, _, _ = reading
    assert fill(opened("refuse"), OneExample(SHORT)).found == 1
    with pytest.raises(PromptError):
        fill(opened("refuse"), OneExample(LONG))
