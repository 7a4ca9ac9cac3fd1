"""What a stage lacks in the data is found before training, for all stages at once."""

from dataclasses import replace

import pytest

from recipes.cologen.data.record import Record
from recipes.cologen.data.world import World
from recipes.cologen.errors import FolderDataError
from recipes.cologen.flux import FluxModel
from recipes.cologen.flux.letters import letter_tokenizers
from recipes.cologen.training.data_check import MAX_RECORDS, SHOWN_FAULTS, check_data


class Given:
    """Records that change those of the world."""

    def __init__(self, change=lambda record: record):
        self.change, self.asked = change, []

    def record(self, index):
        self.asked.append(index)
        return self.change(World(0).record(index))


@pytest.fixture(scope="module")
def model(base_path):
    return FluxModel.load(base_path)


def bare(record):
    return Record(id=record.id, image=record.image, caption=record.caption)


def test_the_worlds_own_records_pass(model):
    check_data(Given(), 20, ("inpainting", "grounding", "control"), model)


def test_every_stage_that_cannot_be_made_is_named(model):
    wanted = ("inpainting", "grounding", "customization", "editing")
    with pytest.raises(FolderDataError) as raised:
        check_data(Given(bare), 20, wanted, model)
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("20 of 20 records were looked at:")
    assert len([line for line in lines if line.startswith("  ")]) == SHOWN_FAULTS + 1
    stages = [line.split(",")[0].strip() for line in lines[1 : SHOWN_FAULTS + 1]]
    assert list(dict.fromkeys(stages)) == list(wanted)
    assert any("and" in line and "more" in line for line in lines)
    assert lines[-1] == "Add to the data what these stages need; it is enough for none of those asked for."


def test_stages_that_the_data_is_enough_for_are_named_with_the_setting(model):
    with pytest.raises(FolderDataError, match=r"leave these stages out.*--set 'stages=\[control\]'"):
        check_data(Given(bare), 20, ("inpainting", "grounding", "control"), model)


def test_depth_without_a_value_is_told(model):
    told = []
    spoilt = Given(lambda record: replace(record, depth_lost=3))
    check_data(spoilt, 20, ("control",), model, say=told.append)
    check_data(Given(), 20, ("control",), model, say=told.append)
    assert told == [
        "depth: 20 of 20 records looked at have 60 pixels that are no finite number (NaN or infinite); they "
        "count as farthest"
    ]


def test_prompts_with_characters_that_the_base_cannot_read_are_named_once(model):
    clip, t5 = letter_tokenizers(77, 128)
    spelling = replace(model, tokenizer=clip, tokenizer_2=t5, max_text_tokens=128)
    notes = []
    smiling = Given(lambda record: replace(record, caption=f"{record.caption} 🙂"))
    check_data(smiling, 20, ("inpainting",), spelling, say=notes.append)
    check_data(Given(), 20, ("inpainting",), spelling, say=notes.append)
    (note,) = notes
    assert note.startswith("prompts: 20 of 20 records looked at have characters that the base's tokenizer")
    assert "'🙂' in " in note


def test_a_large_folder_is_looked_at_here_and_there(model):
    records = Given()
    check_data(records, 10 * MAX_RECORDS, ("grounding",), model)
    assert records.asked == list(range(0, 10 * MAX_RECORDS, 10))


def test_a_prompt_that_is_too_long_is_named(model):
    def long(record):
        return Record(id="tale", image=record.image, caption="red " * 200, objects=record.objects)

    with pytest.raises(FolderDataError, match=r"inpainting, tale: the prompt has \d+ T5 tokens"):
        check_data(Given(long), 3, ("inpainting",), model)


def test_an_unknown_word_is_a_fault_only_if_the_vocabulary_is_closed(model):
    def foreign(record):
        return Record(id="x", image=record.image, caption="Üzüm", objects=record.objects)

    with pytest.raises(FolderDataError, match="cannot read 'Üzüm'"):
        check_data(Given(foreign), 3, ("inpainting",), model)
    clip, t5 = letter_tokenizers(77, 128)
    spelling = replace(model, tokenizer=clip, tokenizer_2=t5, max_text_tokens=128)
    check_data(Given(foreign), 3, ("inpainting",), spelling)
