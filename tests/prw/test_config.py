"""Settings: defaults that the docs state, checks that say what is wrong, and the mirror that PEFT gets."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig
from pydantic import ValidationError

import prw
from prw.config import PoolSettings


def test_the_defaults_are_the_documented_ones():
    settings = PoolSettings()
    assert settings.scale == 2.0
    assert (settings.granularity, settings.gate, settings.share) == ("token", "prob", "straight-through")
    assert (settings.noise, settings.train_veteran_gates, settings.router_norm) == (True, False, False)


@given(st.integers(1, 256), st.floats(0.1, 512))
def test_the_scale_is_alpha_over_rank(rank, alpha):
    assert PoolSettings(rank=rank, alpha=alpha).scale == alpha / rank


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank", 0),
        ("alpha", -1.0),
        ("granularity", "batch"),
        ("gate", "hard"),
        ("top_k", 0),
        ("dropout", 1.0),
        ("kernel", "fast"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_came(option, value):
    with pytest.raises(prw.ConfigError, match=rf"{option}: .*got {re.escape(repr(value))}"):
        PoolSettings.checked(**{option: value})
    with pytest.raises(prw.ConfigError, match=option):
        prw.PrwConfig(**{option: value})


@pytest.mark.parametrize(
    ("option", "pattern", "message"),
    [
        ("rank_pattern", {"(": 2}, r"rank_pattern: '\(' is not a name or regular expression"),
        ("rank_pattern", {"to_k": 0}, "rank_pattern: 'to_k' expected a value above 0, got 0"),
        ("alpha_pattern", {"to_k": -1.0}, r"alpha_pattern: 'to_k' expected a value above 0, got -1\.0"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named_with_its_key(option, pattern, message):
    with pytest.raises(prw.ConfigError, match=message):
        PoolSettings.checked(**{option: pattern})
    with pytest.raises(prw.ConfigError, match=message):
        prw.PrwConfig(**{option: pattern})


@pytest.mark.parametrize(
    ("lora", "here"),
    [
        ({"r": 8}, "r: it is called rank"),
        ({"lora_alpha": 16}, "lora_alpha: it is called alpha"),
        ({"lora_dropout": 0.1}, "lora_dropout: it is called dropout"),
        ({"use_rslora": True}, r"use_rslora: set alpha to lora_alpha \* sqrt\(rank\)"),
        ({"init_lora_weights": False}, "init_lora_weights: an expert starts at zero"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: leave it out"),
        ({"use_dora": True}, "use_dora: a pool of experts has no such option"),
        ({"r": 8, "lora_alpha": 16}, "(?s)r: it is called rank.*lora_alpha: it is called alpha"),
    ],
)
def test_the_usual_options_of_a_lora_are_told_by_their_names_here(make_plain, lora, here):
    model = make_plain()
    with pytest.raises(prw.ConfigError, match=here):
        prw.PrwConfig(**lora)
    with pytest.raises(prw.ConfigError, match=here):
        prw.inject(model, **lora)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ({"target_modules": ["to_k"]}, "it is called target in prw.inject"),
        ({"exclude_modules": ["to_k"]}, "it is called exclude in prw.inject"),
        ({"layers_to_transform": [0]}, "it is called layers in prw.inject"),
        ({"adapter_name": "x"}, "it is called adapter in prw.inject"),
        ({"modules_to_save": ["x"]}, "use get_peft_model"),
        ({"rnak": 4}, r"rnak: unknown setting\. Did you mean rank\?"),
    ],
)
def test_options_of_peft_are_told_by_their_names_in_inject(make_plain, option, here):
    with pytest.raises(prw.ConfigError, match=here):
        prw.inject(make_plain(), **option)


def test_a_file_of_a_later_version_is_read_with_a_warning():
    with pytest.warns(UserWarning, match="not_yet"):
        config = PeftConfig.from_peft_type(peft_type="PRW", rank=4, not_yet=1)
    assert config.rank == 4


def test_settings_cannot_be_changed_behind_the_pools_back():
    with pytest.raises(ValidationError, match="frozen"):
        PoolSettings().rank = 3


def test_pefts_configuration_mirrors_every_setting_and_default():
    fields = {field.name: field for field in dataclasses.fields(prw.PrwConfig)}
    for name, info in PoolSettings.model_fields.items():
        assert fields[name].default == info.default
    assert prw.PrwConfig().settings() == PoolSettings()


@given(
    rank=st.integers(1, 64),
    alpha=st.none() | st.floats(0.5, 64),
    granularity=st.sampled_from(["token", "sample"]),
    experts=st.lists(st.text("abc", min_size=1), unique=True, max_size=4),
    frozen=st.booleans(),
    pattern=st.none() | st.dictionaries(st.text("abc", min_size=1), st.integers(1, 9)),
)
def test_a_configuration_survives_json(rank, alpha, granularity, experts, frozen, pattern):
    config = prw.PrwConfig(
        rank=rank,
        alpha=alpha,
        granularity=granularity,
        experts=experts,
        newest_frozen=frozen,
        rank_pattern=pattern,
        expert_ranks={name: pattern for name in experts if pattern},
    )
    again = PeftConfig.from_peft_type(**json.loads(json.dumps(config.to_dict())))
    assert isinstance(again, prw.PrwConfig)
    assert again == config
