"""The door of the library: `prw.__all__` is sorted, complete, and every name in it is in the reference."""

import inspect
import re
from pathlib import Path

import pytest

import prw

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
STUBS = {stub for page in PAGES for stub in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)}
CONTRACT = {"Curriculum", "PrwConfig", "Stage", "inject", "load", "project", "veteran_loss"}
OBJECTS = sorted(set(prw.__all__) - {"__version__"})


def test_names_are_sorted_and_given_once() -> None:
    assert list(prw.__all__) == sorted(set(prw.__all__))


def test_the_top_level_stays_small() -> None:
    assert len(prw.__all__) <= 24


def test_the_contract_is_there() -> None:
    assert set(prw.__all__) >= CONTRACT


def test_nothing_public_is_left_out() -> None:
    own = {name for name, thing in vars(prw).items() if getattr(thing, "__module__", "").startswith("prw")}
    assert {name for name in own if not name.startswith("_")} == set(OBJECTS)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(prw, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_name_is_in_the_reference(name: str) -> None:
    assert f"prw.{name}" in STUBS, f"add `::: prw.{name}` to a page of docs/reference"


def test_the_reference_names_nothing_that_is_gone() -> None:
    assert {stub for stub in STUBS if stub.count(".") == 1} <= {f"prw.{name}" for name in OBJECTS}


def test_the_library_is_typed() -> None:
    assert (Path(prw.__file__).parent / "py.typed").exists()
