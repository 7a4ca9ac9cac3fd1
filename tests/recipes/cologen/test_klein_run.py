"""FLUX.2 klein through the commands a user types: written, looked at, trained, gone on with, drawn with."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from recipes.cologen import doctor, evaluate, generate, random_weights, train

CONFIG = ["--config", "flux_dev_tiny_weights"]
SETTINGS = ["name=klein", "base.max_text_tokens=128", "stages.*.steps=2", "stages.*.batch_size=2"]
SETTINGS += ["validation.samples=1", "report.samples=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with random weights of klein's layout, and a run of two stages."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first precision of a process
    folder = tmp_path_factory.mktemp("klein")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "arrow")
        assert random_weights.main(["--klein", "--pictures", "4"]) == 0
        command = [*CONFIG, "--output", "runs/klein", "--set", *SETTINGS]
        assert train.main([*command, "--stage", "inpainting"]) == 0
        assert train.main([*command, "--stage", "grounding"]) == 0
    yield folder
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "arrow")
    return place


def test_stages_are_trained_one_after_another(there):
    ledger = json.loads((there / "runs/klein/ledger.json").read_text())
    assert [stage["status"] for stage in ledger["stages"].values()] == ["finished", "finished"]
    rows = [json.loads(line) for line in (there / "runs/klein/metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"inpainting", "grounding"}
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "train")


@pytest.mark.parametrize("task", ["inpainting", "grounding"])
def test_a_picture_is_drawn_at_its_height_and_width(there, task):
    pixels = np.full((32, 48, 3), 90, np.uint8)
    pixels[8:20, 8:30] = 0  # the hole of inpainting
    Image.fromarray(pixels).save("in.png")
    drawing = ["--checkpoint", "runs/klein", "--task", task, "--image", "in.png", "--prompt", "the red car"]
    assert generate.main([*drawing, "--native", "--output", f"{task}.png"]) == 0
    with Image.open(f"{task}.png") as drawn:
        assert drawn.size == (48, 32)


def test_doctor_counts_what_trains_on_klein(there, tmp_path):
    told = tmp_path / "told.json"
    assert doctor.main([*CONFIG, "--json", str(told), "--set", *SETTINGS]) == 0
    facts = json.loads(told.read_text())
    assert facts["parameters"]["sites"] == 3 and facts["parameters"]["per_expert"] == 49_152
    assert set(facts["parameters"]["base"]) == {"transformer", "vae", "text_encoder"}
    assert facts["memory"] and not facts.get("problems")


def test_doctor_says_which_part_of_klein_is_missing(there, tmp_path, capsys):
    base = tmp_path / "base"
    base.mkdir()
    for file in (there / "runs/random_weights/base").rglob("*"):
        if file.is_file() and not (file.parent.name == "vae" and file.suffix == ".safetensors"):
            (base / file.relative_to(there / "runs/random_weights/base")).parent.mkdir(exist_ok=True)
            (base / file.relative_to(there / "runs/random_weights/base")).write_bytes(file.read_bytes())
    assert doctor.main([*CONFIG, "--set", *SETTINGS, f"base.path={base}"]) == 1
    assert "has no weights of vae" in " ".join(capsys.readouterr().out.split())


def test_evaluate_scores_a_finished_stage(there, capsys):
    assert evaluate.main(["--checkpoint", "runs/klein", "--stage", "grounding", "--n", "1"]) == 0
    assert "grounding" in capsys.readouterr().out
