"""doctor looks at a FLUX.2 klein as it does at a FLUX.1."""

import io
import json
import shutil

import pytest
from rich.console import Console

from recipes.cologen import doctor
from recipes.cologen.tools import random_weights

ASKED = ["--config", "flux_dev_tiny_weights", "--set", "name=klein", "base.max_text_tokens=128"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with random weights of klein's layout, and pictures."""
    folder = tmp_path_factory.mktemp("klein")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert random_weights.main(["--klein", "--pictures", "4"]) == 0
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "arrow")


def test_it_counts_what_trains_and_what_that_takes(tmp_path):
    told = tmp_path / "told.json"
    assert doctor.main([*ASKED, "--json", str(told)]) == 0
    facts = json.loads(told.read_text())
    assert facts["parameters"]["sites"] == 3
    assert facts["parameters"]["per_expert"] == 3 * 2 * 2 * 32 * 128  # blocks, K and V, A and B, width, rank
    assert set(facts["parameters"]["base"]) == {"transformer", "vae", "text_encoder"}
    assert not facts.get("problems")


def test_it_says_which_part_is_missing(place, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(place / "runs/random_weights/base", base)
    for file in (base / "vae").glob("*.safetensors"):
        file.unlink()
    assert doctor.main([*ASKED, f"base.path={base}"]) == 1
    assert "has no weights of vae" in " ".join(capsys.readouterr().out.split())


def test_a_base_that_train_would_fetch_is_no_problem_and_what_cannot_be_told_yet_is_said(tmp_path):
    answer, said = tmp_path / "answer.json", io.StringIO()
    given = ["--config", "flux2_klein", "--gpu", "H100", "--json", str(answer)]
    doctor.main(given, Console(file=said, width=300))
    facts = json.loads(answer.read_text())
    assert "problem, base" not in said.getvalue()
    assert "train fetches it" in facts["base"]["where"]
    unchecked = {one["about"]: one for one in facts["unchecked"]}
    assert {"base", "picture size", "memory"} <= set(unchecked)
    assert "hf download" in unchecked["memory"]["how"] and "memory" in unchecked["memory"]["why"]
