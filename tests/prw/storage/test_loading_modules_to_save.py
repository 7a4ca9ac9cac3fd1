"""Other trained modules are PEFT's to save; prw refuses to drop them on the way out or in."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import prw


def with_head(make_plain):
    model = make_plain().eval()
    model.head = torch.nn.Linear(8, 3)
    return model


def test_modules_to_save_are_never_dropped_silently(make_plain, tmp_path):
    torch.manual_seed(3)
    wrapped = get_peft_model(
        with_head(make_plain), prw.PrwConfig(rank=2, experts=["a"], modules_to_save=["head"])
    )
    with torch.no_grad():
        wrapped.base_model.model.head.modules_to_save["default"].weight.fill_(2.0)
    weave = prw.Weave(wrapped)
    with pytest.raises(prw.UnsupportedError, match=r"modules_to_save=\['head'\]"):
        weave.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    wrapped.save_pretrained(tmp_path / "theirs")
    loaded = PeftModel.from_pretrained(with_head(make_plain), tmp_path / "theirs")
    assert loaded.base_model.model.head.modules_to_save["default"].weight.eq(2).all()
    model = with_head(make_plain)
    with pytest.raises(prw.StorageError, match=r"\['head'\].*PeftModel\.from_pretrained"):
        prw.load(model, tmp_path / "theirs")
    assert not hasattr(model, "peft_config")
