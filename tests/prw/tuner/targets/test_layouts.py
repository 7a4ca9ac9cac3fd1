"""Fused projections: which rows are found, how a user says it, and that only those change."""

import pytest
from torch import nn

import prw


class Block(nn.Module):
    """A fused projection in a block that says no more than its attributes."""

    def __init__(self, name: str, width: int, **attributes: int) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(8, width))
        for key, value in attributes.items():
            setattr(self, key, value)


def held(block: nn.Module) -> nn.Module:
    model = nn.Module()
    model.attn = block
    return model


def parts(model: nn.Module, name: str) -> dict[str, tuple[int, ...] | None]:
    (layer,) = (module for path, module in model.named_modules() if path == name)
    return {letter: one and tuple(one) for letter, one in layer.slices_of("default").items()}


@pytest.mark.parametrize(
    ("name", "width", "attributes", "rows"),
    [
        ("qkv", 24, {}, {"k": (1, 24, 8, 16), "v": (1, 24, 16, 24)}),
        ("Wqkv", 24, {"num_heads": 2}, {"k": (1, 24, 8, 16), "v": (1, 24, 16, 24)}),
        ("query_key_value", 24, {"num_heads": 2}, {"k": (2, 12, 4, 8), "v": (2, 12, 8, 12)}),
        (
            "qkv_proj",
            16,
            {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 2},
            {"k": (1, 16, 8, 12), "v": (1, 16, 12, 16)},
        ),
        ("to_kv", 16, {}, {"k": (1, 16, 0, 8), "v": (1, 16, 8, 16)}),
        ("vk", 16, {}, {"v": (1, 16, 0, 8), "k": (1, 16, 8, 16)}),
        (
            "kv_b_proj",
            20,
            {"num_heads": 2, "qk_nope_head_dim": 4, "v_head_dim": 6},
            {"k": (2, 10, 0, 4), "v": (2, 10, 4, 10)},
        ),
    ],
)
def test_rows_are_told_by_name_width_and_heads(name, width, attributes, rows):
    model = held(Block(name, width, **attributes))
    (site,) = prw.inject(model, rank=2, experts=["a"]).sites
    assert parts(model, f"attn.{name}") == rows
    assert site.name == "attn"
    assert site.modules == (f"attn.{name}",)


@pytest.mark.parametrize("letter", ["k", "v"])
def test_one_of_keys_and_values_alone_is_remembered_by_the_folder(tmp_path, letter):
    model = held(Block("qkv", 24))
    weave = prw.inject(model, target=letter, rank=2, experts=["a"])
    assert list(parts(model, "attn.qkv")) == [letter]
    weave.save_pretrained(tmp_path)
    again = held(Block("qkv", 24))
    prw.load(again, tmp_path)
    assert list(parts(again, "attn.qkv")) == [letter]


def test_rows_per_head_are_not_guessed_where_the_block_does_not_say_its_heads():
    with pytest.raises(prw.TargetError, match="layout="):
        prw.inject(held(Block("query_key_value", 24)), rank=2)


def test_a_layout_that_nothing_tells_is_an_error_that_shows_the_call(tmp_path):
    model = held(Block("qkv", 20))
    with pytest.raises(prw.TargetError, match=r"inject\(model, target=\['attn.qkv'\], layout='q\|k\|v'\)"):
        prw.inject(model, rank=2)
    assert not hasattr(model, "peft_config")
    weave = prw.inject(model, target=["attn.qkv"], layout="q12|k4|v4", rank=2, experts=["a"])
    assert parts(model, "attn.qkv") == {"k": (1, 20, 12, 16), "v": (1, 20, 16, 20)}
    weave.save_pretrained(tmp_path)
    again = held(Block("qkv", 20))
    prw.load(again, tmp_path)
    assert parts(again, "attn.qkv") == parts(model, "attn.qkv")


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("q|k|v", {"k": (1, 24, 8, 16), "v": (1, 24, 16, 24)}),
        ("4*(q|k|v)", {"k": (4, 6, 2, 4), "v": (4, 6, 4, 6)}),
        ("2*(v3|x5|k4)", {"k": (2, 12, 8, 12), "v": (2, 12, 0, 3)}),
        ("x12|v", {"v": (1, 24, 12, 24)}),
    ],
)
def test_a_layout_can_be_said(layout, rows):
    model = held(Block("mix", 24))
    prw.inject(model, target=["mix"], layout=layout, rank=2, experts=["a"])
    assert parts(model, "attn.mix") == rows


@pytest.mark.parametrize("layout", ["q|k", "q|x", "k|k", "7*(q|k|v)", "q20|k4|v4", "rows", "", "0*(k|v)"])
def test_a_layout_that_does_not_fit_is_refused(layout):
    if layout == "q|k":
        layout = "q10|k10"
    with pytest.raises(prw.TargetError, match=r"does not fit attn\.mix"):
        prw.inject(held(Block("mix", 24)), target=["mix"], layout=layout, rank=2)
