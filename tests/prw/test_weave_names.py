"""Experts are a list of names; a bare string is refused and not read letter by letter."""

import pytest

import prw


def test_a_string_of_experts_is_refused(make_plain):
    model = make_plain()
    with pytest.raises(prw.ConfigError, match=r"list of names, got the string 'ab'.*experts=\['ab'\]"):
        prw.inject(model, experts="ab")
    with pytest.raises(prw.ConfigError, match="list of names"):
        prw.PrwConfig(experts="ab")
    assert not hasattr(model, "peft_config")
    assert prw.inject(model, experts=(name for name in ("a", "b"))).experts == ("a", "b")
