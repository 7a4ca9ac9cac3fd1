"""Layers that can carry experts, and what is read of the code around them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    IBertConfig,
    IBertModel,
)

import prw
from prw.tuner.targets.projections import role_of

WITHOUT_SOURCE = """
class ReadPast(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.bias = nn.Linear(8, 24, bias=False), nn.Parameter(torch.zeros(24))
    def forward(self, hidden):
        hidden = hidden.to(self.qkv.weight.dtype)
        query, key, value = F.linear(hidden, self.qkv.weight, self.bias).chunk(3, -1)
        return torch.softmax(query @ key.transpose(-1, -2), -1) @ value
"""


def test_they_are_refused_where_a_class_has_no_source_as_in_a_notebook() -> None:
    names = {"nn": nn, "torch": torch, "F": F, "__name__": "of_nowhere"}
    exec(WITHOUT_SOURCE, names)
    model = nn.ModuleDict({"attention": names["ReadPast"]()})
    with pytest.raises(prw.TargetError, match=r"ReadPast computes with the weight of attention\.qkv and"):
        prw.inject(model, rank=2, layout="q|k|v")


def test_a_linear_layer_that_gives_a_scale_too_is_refused_before_it_crashes() -> None:
    config = IBertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(prw.TargetError):
        prw.inject(IBertModel(config), rank=2)


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("Wk", "k"),
        ("valuesProj", "v"),
        ("linear_q", "q"),
        ("queries_keys_values", "qkv"),
        ("kv_mapper", ""),
        ("dense", ""),
        ("k_norm", ""),
    ],
)
def test_names_say_what_a_projection_makes(name, letters):
    assert role_of(name).letters == letters
