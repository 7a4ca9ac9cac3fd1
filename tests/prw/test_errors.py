"""The tree of errors: each is a PrwError and the builtin that a caller would expect."""

import pytest

import prw
from prw.errors import first_few

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
