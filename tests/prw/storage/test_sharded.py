"""Weights of which a process holds only a part; see tests/prw/scale/test_two_ranks.py for those that fit."""

import pytest
import torch

import prw


@pytest.mark.parametrize("left", [torch.empty(0), torch.zeros(5)])
def test_a_part_of_a_weight_is_not_saved_as_the_whole(make_plain, tmp_path, left):
    """FSDP1 and DeepSpeed's ZeRO-3 leave flat or empty parts in the place of a weight."""
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    weave.model.blocks[0].to_v.prw_B0["default"].weight.data = left
    with pytest.raises(prw.StorageError, match=r"has shape \(\d,\).*summon_full_params"):
        weave.save_pretrained(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
