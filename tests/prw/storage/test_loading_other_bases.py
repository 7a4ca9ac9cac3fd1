"""A folder must cover what it says it covers, and a handle from `load` ejects as the first one does."""

import json

import pytest
import torch
from peft import PeftModel

import prw


def test_a_folder_of_some_sites_is_no_earlier_stage_of_a_pool_with_more(make_plain, tmp_path):
    part = make_plain()
    prw.inject(part, target=["blocks.0.to_k", "blocks.0.to_v"], rank=2, experts=["a"]).save_pretrained(
        tmp_path
    )
    whole = make_plain()
    prw.inject(whole, rank=2, experts=["a", "b"])
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    with pytest.raises(prw.StorageError, match=r"6 weights are missing .*blocks\.1\.to_k\.prw_A0"):
        prw.load(whole, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in whole.state_dict().items())


def test_any_handle_ejects_as_the_first_one_does(make_plain, tmp_path):
    model = make_plain()
    model.blocks[0].to_q.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    prw.inject(model, rank=2, experts=["a"]).save_pretrained(tmp_path)
    for handle in (lambda: prw.load(model, tmp_path), lambda: prw.Weave(model)):
        handle().eject()
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        prw.inject(model, rank=2, experts=["a"])


@pytest.mark.parametrize("target", ["kv", "all-linear", ["to_k", "to_v"], r".*\.to_[kv]"])
def test_a_pool_of_a_smaller_base_is_refused_and_peft_says_so(make_plain, tmp_path, target):
    prw.inject(make_plain(blocks=2), target=target, rank=2, experts=["a"]).save_pretrained(tmp_path)
    model = make_plain(blocks=3)
    trains = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(prw.StorageError, match=r"does not cover this model.*blocks\.2\.to_k.*smaller base"):
        prw.load(model, tmp_path)
    assert not hasattr(model, "peft_config")
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    with pytest.warns(UserWarning, match=r"does not cover this model.*blocks\.2"):
        PeftModel.from_pretrained(model, tmp_path)


def test_a_pool_of_chosen_layers_covers_what_it_was_asked_to(make_plain, tmp_path):
    for number, options in enumerate(({"layers": [0, 1]}, {"target": ["blocks.0.to_k", "blocks.1.to_k"]})):
        folder = tmp_path / str(number)
        prw.inject(make_plain(blocks=2), rank=2, experts=["a"], **options).save_pretrained(folder)
        assert len(prw.load(make_plain(blocks=3), folder).sites) == 2
        PeftModel.from_pretrained(make_plain(blocks=3), folder)


def test_who_means_it_takes_the_note_out(make_plain, tmp_path):
    prw.inject(make_plain(blocks=2), rank=2, experts=["a"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text())
    assert values["resolved_from"] == "kv"
    file.write_text(json.dumps({**values, "resolved_from": None}))
    assert len(prw.load(make_plain(blocks=3), tmp_path).sites) == 2
    del values["resolved_from"]  # as earlier versions wrote it
    file.write_text(json.dumps(values))
    assert len(prw.load(make_plain(blocks=3), tmp_path).sites) == 2


def test_a_pool_of_a_larger_base_is_refused(make_plain, tmp_path):
    prw.inject(make_plain(blocks=3), rank=2, experts=["a"]).save_pretrained(tmp_path)
    model = make_plain(blocks=2)
    with pytest.raises(prw.StorageError, match=r"of another model.*blocks\.2\.to_k"):
        prw.load(model, tmp_path)
    assert not hasattr(model, "peft_config")
