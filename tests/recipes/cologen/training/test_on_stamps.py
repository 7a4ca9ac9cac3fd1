"""All five stages train on scenes made of stamps, validated on others, and resume where they were."""

import json

import pytest

from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.training import loop
from tests.recipes.cologen.stamp_folder import write_stamps
from tests.recipes.cologen.training.conftest import make_config

ROW = {"steps": 2, "batch_size": 2, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}
HEIGHT, WIDTH = 16, 24


@pytest.fixture
def config(base_path, tmp_path):
    stamps = write_stamps(tmp_path / "stamps")
    sets = [
        f"stages={json.dumps(dict.fromkeys(COLOGEN_STAGES, ROW))}",
        "data.source=sets",
        "data.held_out=sets",
    ]
    for place, seed in (("sets", 0), ("held_out_sets", 1)):
        options = {"scenes": 40, "seed": seed, "min_side": 8, "most": 1, "height": HEIGHT, "width": WIDTH}
        chosen = {"layout": "stamps", "path": f"folder:{stamps}", "options": options}
        sets.append(f"data.{place}.stamps={json.dumps(chosen)}")
    return make_config(base_path, *sets, "validation.samples=1", "validation.every=9")


def test_every_stage_trains_on_stamps(config, run, tmp_path, monkeypatch):
    seen, original = [], loop.train_step

    def watching(trained, stage, step, optimizer, micro):
        seen.extend(micro)
        return original(trained, stage, step, optimizer, micro)

    monkeypatch.setattr(loop, "train_step", watching)
    outcome = run(config, tmp_path / "run")
    assert outcome.complete and outcome.trained == tuple(COLOGEN_STAGES)
    assert {tuple(batch.target.shape) for batch in seen} == {(2, 3, HEIGHT, WIDTH)}
    (facts,) = json.loads((tmp_path / "run/data_card.json").read_text())["sets"]
    assert (facts["licence"], facts["commercial_use"], facts["records"]) == ("gpl-2.0", False, 40)
    assert not (tmp_path / "run/skipped.jsonl").exists()


def test_a_stopped_run_on_stamps_ends_as_one_that_was_not(config, run, stop_at, tmp_path):
    assert run(config, tmp_path / "whole").complete
    stop_at(9)
    assert run(config, tmp_path / "cut").stopped is not None
    assert run(config, tmp_path / "cut").complete
    weights = [
        (tmp_path / name / "checkpoints/editing/prw/adapter_model.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def test_customization_trains_on_two_subjects_from_two_sources(base_path, tmp_path, run, monkeypatch):
    seen, original = [], loop.train_step

    def watching(trained, stage, step, optimizer, micro):
        seen.extend(micro)
        return original(trained, stage, step, optimizer, micro)

    monkeypatch.setattr(loop, "train_step", watching)
    options = {"scenes": 20, "min_side": 8, "subjects": 2, "most": 1, "height": 32, "width": 48}
    chosen = {"layout": "stamps", "path": f"folder:{write_stamps(tmp_path / 's')}", "options": options}
    settings = ["data.source=sets", "data.max_sources=2", f"data.sets.stamps={json.dumps(chosen)}"]
    stages = f"stages={json.dumps({'customization': ROW})}"
    assert run(make_config(base_path, stages, *settings, "validation.samples=0"), tmp_path / "run").complete
    assert [len(batch.further) for batch in seen] == [1, 1]
    assert all(batch.further[0].shape == (2, 3, 32, 48) for batch in seen)
