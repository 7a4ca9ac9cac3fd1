"""A base is a folder here, or a name on the hub; what is neither is refused with the way to get one."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux import FluxModel
from recipes.cologen.flux.locate import locate_base
from recipes.cologen.tools.random_flux1 import write_random_flux

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one base; the hub itself is out of reach."""
    repository = tmp_path / "hub" / "models--someone--flux"
    snapshot = repository / "snapshots" / COMMIT
    write_random_flux(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_name_on_the_hub_is_a_base(cached: Path, revision: str | None) -> None:
    folder = locate_base("someone/flux", revision, Path("someone/flux"))
    assert folder == cached
    assert FluxModel.load(folder, torch.bfloat16).transformer.dtype is torch.bfloat16


@pytest.mark.parametrize(("name", "revision"), [("someone/else", None), ("someone/flux", "v9")])
def test_what_cannot_be_fetched_is_refused_with_the_way_to_get_one(
    cached: Path, name: str, revision: str | None
) -> None:
    expected = (
        rf"no FLUX base at {name}, and '{name}'.*cannot be fetched(.|\n)*--set base\.path(.|\n)*licence"
    )
    with pytest.raises(BaseModelError, match=expected):
        locate_base(name, revision, Path(name))


def test_a_folder_here_goes_before_the_hub_and_has_no_revision(cached: Path, tmp_path: Path) -> None:
    here = tmp_path / "someone" / "flux"
    here.mkdir(parents=True)
    assert locate_base("someone/flux", None, here) == here
    with pytest.raises(BaseModelError, match=r"has no revisions: leave it out"):
        locate_base("someone/flux", "main", here)


def test_the_way_to_get_one_names_klein_and_the_parts_that_its_folder_has() -> None:
    with pytest.raises(BaseModelError) as refused:
        locate_base("./klein", None, Path("./klein"))
    for told in (
        "--config flux2_klein",
        "no text_encoder_2",
        "hf download black-forest-labs/FLUX.2-klein-base-4B",
    ):
        assert told in str(refused.value)


@pytest.mark.parametrize("name", ["absent", "runs/absent/base", "/absent/flux", "./absent", "a b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(BaseModelError, match=r"no FLUX base at .*random_weights"):
        locate_base(name, None, Path(name))
