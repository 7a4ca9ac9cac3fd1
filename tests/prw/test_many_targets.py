"""Models with so many projections that PEFT shortens the list of targets to the ends of their paths."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.constants import MIN_TARGET_MODULES_FOR_OPTIMIZATION
from torch import nn

import prw

BLOCKS = MIN_TARGET_MODULES_FOR_OPTIMIZATION // 2 + 1


class WithHead(nn.Module):
    """A deep stack, and beside it an attention that is not meant, whose projections have the same names."""

    def __init__(self, stack, other):
        super().__init__()
        self.stack, self.other = stack, other

    def forward(self, hidden):
        return self.other(self.stack(hidden))


@pytest.fixture
def make_deep(make_plain):
    def make():
        torch.manual_seed(11)
        return WithHead(make_plain(blocks=BLOCKS), make_plain(blocks=2)).eval()

    return make


def paths(weave):
    return [module for site in weave.sites for module in site.modules]


@pytest.mark.parametrize("target", ["kv", r"stack\.blocks\.\d+\.to_[kv]"])
def test_exactly_the_targets_get_experts_and_come_back_from_a_folder(make_deep, wake, tmp_path, target):
    model, hidden = make_deep(), torch.randn(2, 5, 8)
    wanted = [
        name
        for name, _ in model.named_modules()
        if name.endswith((".to_k", ".to_v")) and (target == "kv" or name.startswith("stack."))
    ]
    assert len(wanted) >= MIN_TARGET_MODULES_FOR_OPTIMIZATION
    before = model(hidden)
    weave = prw.inject(model, target=target, rank=2, experts=["a", "b"])
    assert paths(weave) == wanted
    assert torch.equal(model(hidden), before)
    wake(weave)
    expected = model(hidden)
    assert not torch.equal(expected, before)
    weave.save_pretrained(tmp_path)
    for load in (prw.load, lambda base, path: prw.Weave(PeftModel.from_pretrained(base, path))):
        other = make_deep()
        again = load(other, tmp_path)
        other.eval()
        assert [path.removeprefix("base_model.model.") for path in paths(again)] == wanted
        assert torch.equal(other(hidden), expected)


def test_peft_saves_what_prw_loads(make_deep, wake, tmp_path):
    model, hidden = make_deep(), torch.randn(2, 5, 8)
    wrapped = get_peft_model(model, prw.PrwConfig(rank=2, experts=["a"])).eval()
    wake(prw.Weave(wrapped))
    expected = wrapped(hidden)
    wrapped.save_pretrained(tmp_path)
    other = make_deep()
    prw.load(other, tmp_path)
    assert torch.equal(other(hidden), expected)
