"""Fused projections: which rows are found, how a user says it, and that only those change."""

import pytest
from torch import nn

import prw
from prw.tuner.targets import plan_pool
from prw.tuner.targets.names import role_of


class Block(nn.Module):
    """A fused projection in a block that says no more than its attributes."""

    def __init__(self, name: str, width: int, **attributes: int) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(8, width))
        for key, value in attributes.items():
            setattr(self, key, value)


def planned(model: nn.Module) -> list[str]:
    return plan_pool(model, prw.PrwConfig()).config.target_modules


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


def test_a_wrapper_lends_its_name_and_a_missing_value_projection_makes_keys_the_values():
    block = nn.Module()
    for name in ("k_proj", "v_proj"):
        wrapper = nn.Module()
        wrapper.linear = nn.Linear(4, 4)
        block.add_module(name, wrapper)
    assert planned(held(block)) == ["attn.k_proj.linear", "attn.v_proj.linear"]
    shared = nn.Module()
    shared.k_proj, shared.v_proj = nn.Linear(4, 4), None
    assert planned(held(shared)) == ["attn.k_proj"]


def test_the_key_and_value_of_a_feed_forward_are_no_attention():
    block = nn.Module()
    block.key, block.value = nn.Linear(4, 16), nn.Linear(16, 4)
    with pytest.raises(prw.TargetError, match="no attention block"):
        prw.inject(held(block))


def test_exclude_and_layers_limit_and_what_matches_nothing_is_an_error(make_plain):
    def places(**limits):
        model = make_plain(blocks=3)
        return [path for site in prw.inject(model, rank=2, **limits).sites for path in site.modules]

    assert places(exclude="blocks.1") == ["blocks.0.to_k", "blocks.0.to_v", "blocks.2.to_k", "blocks.2.to_v"]
    assert places(exclude=["to_v", "blocks.[01].*"]) == ["blocks.2.to_k"]
    assert places(layers=[1]) == places(layers=1) == ["blocks.1.to_k", "blocks.1.to_v"]
    assert places(layers=[0, 2], exclude="to_k") == ["blocks.0.to_v", "blocks.2.to_v"]
    with pytest.raises(prw.TargetError, match=r"exclude='blocks\.7' matched nothing"):
        places(exclude=["to_k", "blocks.7"])
    with pytest.raises(prw.TargetError, match="index 7"):
        places(layers=[0, 7])
