"""A prompt that is too long for the base: cut and counted where data sets bring it, refused elsewhere."""

import json

import pytest
import torch
from diffusers import FluxPipeline

from recipes.cologen.errors import FolderDataError, PromptError
from recipes.cologen.flux import FluxModel
from recipes.cologen.tools.random_flux1 import write_random_flux
from recipes.cologen.training.input.batches import Batch
from recipes.cologen.training.input.long_prompts import LongPrompts
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import config, write_folder

LONG, SHORT = "a very long prompt about a cat on a sofa", "a cat"


@pytest.fixture(scope="module")
def spelling(tmp_path_factory):
    """A base that reads any word, letter by letter."""
    folder = tmp_path_factory.mktemp("spelling")
    write_random_flux(folder, dtype=torch.float32)
    return folder


def reading(folder, long_prompts):
    model = FluxModel.load(folder, max_text_tokens=12)
    model.long_prompts = long_prompts
    return model


def test_a_cut_prompt_is_what_flux_pipeline_makes_of_it(spelling):
    model = reading(spelling, "truncate")
    pipeline = FluxPipeline.from_pretrained(spelling, dtype=torch.float32)
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt([LONG, SHORT], None, max_sequence_length=12)
        text = model.encode_prompts([LONG, SHORT])
    assert torch.equal(text.embeds, embeds) and torch.equal(text.pooled, pooled)
    assert model.tokenize([LONG]).t5[0, -1] == model.tokenizer_2.eos_token_id


def test_which_prompts_are_too_long_does_not_depend_on_what_was_read_before(spelling):
    model = reading(spelling, "truncate")
    for _ in range(2):
        assert model.too_long([SHORT, LONG, "", "a" * 10, "a" * 11]) == [LONG, "a" * 11]
        model.encode_prompts([LONG])


def test_a_refused_prompt_says_how_to_have_it_cut(spelling):
    with pytest.raises(PromptError, match=r"at most 12 are read(.|\n)*base\.long_prompts=truncate"):
        reading(spelling, "refuse").encode_prompts([LONG])


def test_the_count_is_said_at_one_ten_and_a_hundred(spelling):
    said = []
    tally = LongPrompts(reading(spelling, "truncate"), said.append)
    for _ in range(105):
        tally.add(Batch(torch.zeros(2), torch.zeros(2), (SHORT, LONG), (0, 1)))
    assert (tally.cut, tally.seen) == (105, 210)
    assert [line.split(" prompts")[0] for line in said] == ["1 of 2", "10 of 20", "100 of 200"]
    assert LONG in said[0] and "base.max_text_tokens" in said[0]


def test_a_base_that_refuses_is_not_asked_to_count(spelling):
    tally = LongPrompts(reading(spelling, "refuse"), lambda line: pytest.fail(line))
    tally.add(Batch(torch.zeros(1), torch.zeros(1), (LONG,), (0,)))
    assert tally.cut == 0


def test_the_default_cuts_prompts_of_data_sets_alone():
    assert make_config("x").long_prompts == "refuse"
    assert make_config("x", "data.source=folder:y").long_prompts == "refuse"
    assert make_config("x", "base.long_prompts=truncate").long_prompts == "truncate"
    sets = ["data.source=sets", "data.sets.a.layout=own", "data.sets.a.path=folder:y"]
    assert make_config("x", *sets).long_prompts == "truncate"
    assert make_config("x", *sets, "base.long_prompts=refuse").long_prompts == "refuse"


def test_a_run_on_data_sets_goes_through_and_one_that_refuses_stops_before_it_begins(spelling, tmp_path, run):
    (tmp_path / "data").mkdir()
    path = write_folder(tmp_path / "data")
    lines = (tmp_path / "data/metadata.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "text": LONG} for line in lines]
    (tmp_path / "data/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["base.max_text_tokens=24", "data.size=[16,32]", "stages.*.steps=1", "dropout.text=0"]
    asked = config(spelling, path, *settings)
    assert run(asked, tmp_path / "run", "inpainting").trained == ("inpainting",)
    with pytest.raises(FolderDataError, match="at most 24 are read"):
        run(config(spelling, path, *settings, "base.long_prompts=refuse"), tmp_path / "no", "inpainting")
