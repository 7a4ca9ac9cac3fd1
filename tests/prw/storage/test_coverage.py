"""A folder must cover what it says it covers, and a handle from `load` ejects as the first one does."""

import pytest
import torch

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
