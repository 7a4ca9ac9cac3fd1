"""Names that look alike are the same name, whichever of Unicode's forms they come in."""

import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prw
from prw.integrations.checkpoints import latest, pools_of_others

COMPOSED, APART = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))


@pytest.fixture
def weave(make_plain):
    return prw.inject(make_plain(), rank=2, experts=[APART])


def test_an_expert_is_found_by_either_form(weave):
    assert COMPOSED != APART
    assert weave.experts == (COMPOSED,)
    for name in (COMPOSED, APART):
        with weave.as_of(name):
            pass
        with pytest.raises(prw.ConfigError, match="already has an expert"):
            weave.add_expert(name)


def test_it_is_copied_renamed_and_removed_by_either_form(weave):
    weave.add_expert("b", init=APART)
    weave.rename_expert(APART, f"{APART} 2")
    assert weave.experts == (f"{COMPOSED} 2", "b")
    weave.rename_expert(f"{COMPOSED} 2", APART)
    weave.remove_expert(COMPOSED)
    assert weave.experts == ("b",)


def test_a_folder_that_has_the_other_form_is_the_same_pool(weave, make_plain, tmp_path):
    weave.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace(r"\u00e9t\u00e9", r"e\u0301te\u0301"))
    assert r"e\u0301te\u0301" in file.read_text()
    again = prw.load(make_plain(), tmp_path)
    assert again.experts == (COMPOSED,)


def test_stages_find_their_expert_and_their_folder(weave, tmp_path):
    curriculum = prw.Curriculum([prw.Stage(APART, rho=1.0, alpha=0.0, steps=2, lr=0.1)])
    assert curriculum.names == (COMPOSED,)
    assert curriculum[APART] is curriculum[COMPOSED]
    assert APART in curriculum
    with pytest.raises(prw.CurriculumError, match="two stages"):
        prw.Curriculum([curriculum[0], prw.Stage(COMPOSED, rho=1.0, alpha=0.0, steps=2, lr=0.1)])
    assert [stage.name for stage in curriculum.stages(weave)] == [COMPOSED]
    weave.save_pretrained(tmp_path / APART)
    assert latest(tmp_path, curriculum.names, "default").pool == tmp_path / APART
    assert pools_of_others(tmp_path, curriculum.names, "default") == []


def test_an_imported_lora_is_known_by_the_composed_name(weave, tmp_path):
    weave.export_lora(COMPOSED, tmp_path)
    weave.import_lora(tmp_path, name=f"{APART} 2")
    assert weave.config.imported == [f"{COMPOSED} 2"]
    assert not any(p.requires_grad for n, p in weave.model.named_parameters() if ".prw_A1." in n)
    assert torch.is_tensor(weave.trainable_parameters()[0])


@settings(deadline=None)
@given(st.text(min_size=1, max_size=8))
def test_every_form_of_any_name_is_one_stage(name):
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    assert len({prw.Stage(form, rho=1.0, alpha=0.0, steps=1, lr=0.1).name for form in forms}) == 1
