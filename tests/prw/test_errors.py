"""The tree of errors, each also the builtin one expects; explanations of wrong settings; lists of names."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import prw
from prw.errors import fault_lines, first_few

TREE = {
    prw.ConfigError: ValueError,
    prw.TargetError: ValueError,
    prw.PoolError: ValueError,
    prw.RoutingError: RuntimeError,
    prw.UnsupportedError: RuntimeError,
    prw.StorageError: OSError,
    prw.CurriculumError: ValueError,
}


@pytest.mark.parametrize(("error", "builtin"), TREE.items())
def test_an_error_is_also_a_builtin_one(error, builtin):
    assert issubclass(error, prw.PrwError)
    assert issubclass(error, builtin)
    assert error.__name__ in prw.errors.__doc__


def test_the_tree_is_whole():
    assert set(prw.PrwError.__subclasses__()) == set(TREE)


@pytest.mark.parametrize(
    ("names", "said"),
    [([], "none"), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")],
)
def test_a_message_lists_the_first_few_names(names, said):
    assert first_few(names) == said


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(ge=1)
    kind: Literal["a", "b"] = "a"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner(steps=1)
    stages: dict[str, Inner] = {}
    others: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"inner": {"steps": 0}}, "inner.steps: expected 1 or more, got 0"),
        ({"inner": {"steps": "x"}}, "inner.steps: expected a whole number, got 'x'"),
        ({"inner": {"steps": 1, "kind": "c"}}, "inner.kind: expected 'a' or 'b', got 'c'"),
        ({"inner": {}}, "inner.steps: missing"),
        ({"inner": {"steps": 1, "stepz": 2}}, "inner.stepz: unknown setting. Did you mean inner.steps?"),
        ({"steps": 3}, "steps: unknown setting. Did you mean inner.steps?"),
        (
            {"stages": {"one": {"steps": 1, "step": 1}}},
            "stages.one.step: unknown setting. Did you mean stages.one.steps?",
        ),
        (
            {"others": {"mine": {"steps": 1, "step": 1}}},
            "others.mine.step: unknown setting. Did you mean others.mine.steps?",
        ),
        ({"inner": {"steps": 1, "qq": 1}}, "inner.qq: unknown setting; settings of inner are steps, kind"),
        ({"r": 8}, "r: it is called rank, got 8"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_what_came(values, line):
    with pytest.raises(ValidationError) as raised:
        Outer(**values)
    lines = fault_lines(
        raised.value, Outer, hints={"r": "it is called rank"}, groups={"stages": ("one", "two")}
    )
    assert lines == [line]
