"""A pool is drawn with as its run draws: prompt length, steps, schedule, annotators, number of sources."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from recipes.cologen.config import parse_config
from recipes.cologen.config_drawing import DrawingSettings, read_drawing
from recipes.cologen.data.annotators.opencv import draw_canny
from recipes.cologen.errors import PictureError
from recipes.cologen.flux.tiny import save_tiny_flux
from recipes.cologen.generate import main
from recipes.cologen.pipeline import CoLoGenPipeline

CANNY = {"kind": "opencv", "options": {"low": 5, "high": 10}}


@pytest.fixture
def run(tools, tmp_path: Path) -> Path:
    """A run on a tiny base, with settings that all differ from those of a pipeline alone."""
    model = tools.base()
    save_tiny_flux(model, tmp_path / "base", dtype=torch.float32)
    weave = tools.add_pool(model.transformer)
    folder = tmp_path / "run"
    for stage in ("inpainting", "grounding"):
        weave.save_pretrained(folder / "checkpoints" / stage / "prw")
        (folder / "checkpoints" / stage / "stage.json").write_text("{}")
    config = parse_config(
        {
            "name": "run",
            "base": {"path": str(tmp_path / "base"), "max_text_tokens": 9},
            "data": {"source": "folder:x", "annotators": {"canny": CANNY}},
            "flow": {"source_timestep": "zero"},
            "sampling": {"steps": 3, "shift": 2.5},
            "stages": {"inpainting": {}, "grounding": {}},
        }
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Text tokens of every call of the transformer, as it is asked for them."""
    seen: list[int] = []
    encode = CoLoGenPipeline.encode_prompt

    def noted(pipe, *args, **kwargs):
        seen.append(kwargs["max_sequence_length"])
        return encode(pipe, *args, **kwargs)

    monkeypatch.setattr(CoLoGenPipeline, "encode_prompt", noted)
    return seen


def opened(run: Path, pool: Path) -> CoLoGenPipeline:
    pipe = CoLoGenPipeline.from_pretrained(run.parent / "base", prw=pool)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_pipeline_draws_what_generate_draws(run: Path, tools, lengths) -> None:
    photo = tools.picture(0, 24, 16)
    Image.fromarray(photo).save(run / "photo.png")
    command = [
        "--checkpoint",
        str(run),
        "--task",
        "grounding",
        "--prompt",
        "draw a red box around the square",
    ]
    out = run / "out.png"
    assert main([*command, "--image", str(run / "photo.png"), "--output", str(out), "--native"]) == 0
    pipe = opened(run, run)
    generator = torch.Generator().manual_seed(0)
    result = pipe(
        "draw a red box around the square", photo, task="grounding", generator=generator, as_of=True
    )
    with Image.open(out) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(result.images[0]))
    assert lengths == [9, 9]


def test_every_door_to_a_pool_leads_to_the_same_settings(run: Path, tools, tmp_path: Path) -> None:
    wanted = opened(run, run).drawing
    assert wanted.max_text_tokens == 9 and wanted.steps == 3 and wanted.source_timestep == "zero"
    whole = tmp_path / "whole"
    opened(run, run).save_pretrained(whole)
    shutil.copytree(whole / "prw", tmp_path / "pool")
    assert read_drawing(tmp_path / "pool") == wanted
    later = CoLoGenPipeline.from_pretrained(run.parent / "base")
    assert later.drawing == DrawingSettings()
    later.load_pool(tmp_path / "pool")
    other = opened(run, run)
    doors = {
        "a stage": opened(run, run / "checkpoints" / "grounding"),
        "a pool alone": opened(run, tmp_path / "pool"),
        "a saved pipeline": CoLoGenPipeline.from_pretrained(whole),
        "loaded later": later,
        "made of another": CoLoGenPipeline.from_pipe(other, vae=other.vae),
    }
    for name, pipe in doors.items():
        assert pipe.drawing == wanted, name
        assert pipe.scheduler.config.shift == 2.5 and not pipe.scheduler.config.use_dynamic_shifting, name


def test_a_call_may_say_otherwise(run: Path, tools, lengths) -> None:
    pipe, photo, steps = opened(run, run), tools.picture(0, 24, 16), []

    def count(pipe, step, timestep, tensors):
        steps.append(step)
        return {}

    pipe("a red square", photo, callback_on_step_end=count)
    assert (steps, lengths) == ([0, 1, 2], [9])
    steps.clear()
    pipe("a red square", photo, num_inference_steps=2, max_sequence_length=12, callback_on_step_end=count)
    assert (steps, lengths) == ([0, 1], [9, 12])


def test_the_runs_annotators_make_the_maps(run: Path, tools) -> None:
    image = tools.picture(0, 24, 16)
    pipe = opened(run, run)
    assert np.array_equal(pipe.annotators["canny"](image), draw_canny(image, 5, 10))
    assert not np.array_equal(pipe.annotators["canny"](image), draw_canny(image))


def test_more_sources_than_were_trained_are_refused(run: Path, tools) -> None:
    pipe, photo = opened(run, run), tools.picture(0, 24, 16)
    with pytest.raises(PictureError, match="2 sources, but the experts were trained with at most 1"):
        pipe("a red square", [[photo, photo]])


def test_the_whole_is_a_stock_folder_still(run: Path, tmp_path: Path) -> None:
    opened(run, run).save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/model_index.json").read_text())["drawing"]["max_text_tokens"] == 9
    stock = FluxPipeline.from_pretrained(tmp_path / "whole", trust_remote_code=True)  # its pixel VAE
    assert stock.scheduler.config.shift == 2.5


def test_an_exported_expert_says_how_long_its_prompts_were(run: Path, tools, tmp_path: Path, capsys) -> None:
    opened(run, run).export_lora("grounding", tmp_path / "lora", prompt="a", image=tools.picture(0, 24, 16))
    assert "draw with max_sequence_length=9" in capsys.readouterr().err


def test_a_pool_without_a_run_is_drawn_as_before(tools, build, tmp_path: Path) -> None:
    pipe = build()
    pipe.weave.save_pretrained(tmp_path / "pool")
    other = build(experts=False)
    assert other.load_pool(tmp_path / "pool").experts == pipe.weave.experts
    assert other.drawing == DrawingSettings()


def test_klein_pads_prompts_as_the_run_did(made, tools, monkeypatch) -> None:
    pipe, seen = made("klein"), []
    encode = pipe.encode_prompt
    monkeypatch.setattr(
        pipe, "encode_prompt", lambda **asked: seen.append(asked["max_sequence_length"]) or encode(**asked)
    )
    pipe.draw_as(DrawingSettings(max_text_tokens=45, steps=1))
    pipe("a", tools.picture(0))
    assert seen == [45]
