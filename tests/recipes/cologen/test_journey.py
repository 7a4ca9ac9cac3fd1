"""The whole way on a random base, nothing replaced: train three stages, build the report, draw a picture."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from recipes.cologen import evaluate, generate, train
from recipes.cologen.data.world import World
from recipes.cologen.report import build_report
from tests.recipes.cologen.training.conftest import base_path, make_config

__all__ = ["base_path"]

STAGES = ("inpainting", "grounding", "control")


def test_training_reporting_and_drawing(
    base_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run = tmp_path / "brief.yaml", tmp_path / "run"
    settings.write_text(make_config(base_path, "stages.*.steps=2").to_yaml(), encoding="utf-8")
    said = io.StringIO()
    asked = ["--config", str(settings), "--output", str(run)]
    assert train.main(asked, Console(file=said, width=300)) == 0
    page = run / "report" / "index.html"
    assert f"all is done; the report is {page}" in said.getvalue()

    scores = json.loads((run / "report" / "scores.json").read_text())
    assert set(scores["after_own_stage"]) == set(STAGES) and scores["n"] == 2
    assert scores["final_as_of"] == scores["after_own_stage"]
    pictures = re.findall(r'src="([^"]+)"', page.read_text(encoding="utf-8"))
    assert {f"stage-{stage}.png" for stage in STAGES} <= set(pictures)
    for name in pictures:
        with Image.open(page.parent / name) as opened:
            assert np.ptp(np.asarray(opened.convert("L"))) > 0, name

    told: list[str] = []
    assert build_report(run, announce=told.append) == page and told == []  # nothing is measured twice
    assert evaluate.main(["--checkpoint", str(run)]) == 0
    assert "scores.json" in capsys.readouterr().out

    source, drawn = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(World(3).record(0).image).save(source)
    words = ["--task", "grounding", "--prompt", "draw a red box around the blue square"]
    files = ["--checkpoint", str(run), "--image", str(source), "--output", str(drawn)]
    assert generate.main([*files, *words, "--native"]) == 0
    with Image.open(drawn) as opened:
        assert opened.size == (16, 16)
