"""Every family of the matrix passes every check that it is asked, and the page says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prw.matrix.checks import CHECKS, checks_of
from tests.prw.matrix.page import PAGE, page
from tests.prw.matrix.registry import FAMILIES

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    # transformers and peft disagree about the name of this property; nothing of ours.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_passes(family, tmp_path: Path) -> None:
    for name in checks_of(family):
        folder = tmp_path / name.replace(", ", "-")
        folder.mkdir()
        CHECKS[name](family, folder)


def test_the_page_says_what_the_models_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/supported_models"


def test_names_are_unique() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
