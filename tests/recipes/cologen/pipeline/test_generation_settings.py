"""A pool is drawn with as its run draws: prompt length, steps, schedule, annotators, number of sources."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from recipes.cologen.config.run import load_config, parse_config
from recipes.cologen.data.annotators.opencv import canny_map
from recipes.cologen.errors import AnnotatorError, GuidanceError, PictureError
from recipes.cologen.flux.tiny import save_tiny_flux
from recipes.cologen.generate import main
from recipes.cologen.pipeline import CoLoGenPipeline
from recipes.cologen.pipeline.tasks import run_annotator
from recipes.cologen.runs.generation import GenerationSettings, read_generation

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


SIZES = {
    "one size": (["data.size=[16,24]"], (16, 24)),
    "buckets": (["data.buckets.sizes=[[16,24],[24,16]]"], (24, 16)),
}


@pytest.mark.parametrize(("settings", "size"), SIZES.values(), ids=SIZES)
def test_the_pipeline_draws_at_the_size_that_generate_draws_at(
    run: Path, tools, settings, size, caplog
) -> None:
    settings = [*settings, "data.max_sources=2"]
    (run / "config.yaml").write_text(load_config(run / "config.yaml", settings).to_yaml())
    photo, prompt = tools.picture(0, 48, 36), "draw a red box around the square"
    Image.fromarray(photo).save(run / "photo.png")
    out = run / "out.png"
    files = ["--checkpoint", str(run), "--image", str(run / "photo.png"), "--output", str(out), "--native"]
    Image.fromarray(tools.picture(1, 20, 40)).save(run / "further.png")
    further = ["--also", str(run / "further.png")]
    assert main([*files, *further, "--task", "grounding", "--prompt", prompt]) == 0
    pipe = opened(run, run)
    asked = {"task": "grounding", "as_of": True, "output_routing": True}
    result = pipe(
        prompt, [[photo, tools.picture(1, 20, 40)]], generator=torch.Generator().manual_seed(0), **asked
    )
    with Image.open(out) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(result.images[0]))
    assert result.routing.sources[0].shape[:2] == size
    assert f"read at {size[1]}x{size[0]}, which training gave" in caplog.text
    for said, expected in (({"max_pixels": 10**6}, (36, 48)), ({"height": 32}, (24, 32))):
        assert pipe(prompt, photo, **said).images[0].size == expected


def test_every_door_to_a_pool_leads_to_the_same_settings(run: Path, tools, tmp_path: Path) -> None:
    wanted = opened(run, run).generation
    assert wanted.max_text_tokens == 9 and wanted.steps == 3 and wanted.source_timestep == "zero"
    whole = tmp_path / "whole"
    opened(run, run).save_pretrained(whole)
    shutil.copytree(whole / "prw", tmp_path / "pool")
    assert read_generation(tmp_path / "pool") == wanted
    later = CoLoGenPipeline.from_pretrained(run.parent / "base")
    assert later.generation == GenerationSettings()
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
        assert pipe.generation == wanted, name
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
    image = tools.picture(0, 24, 16) // 8 + 100  # edges too weak for the usual thresholds
    pipe = opened(run, run)
    assert np.array_equal(pipe.annotators["canny"](image), canny_map(image, 5, 10))
    assert not np.array_equal(pipe.annotators["canny"](image), canny_map(image))


@pytest.fixture
def named_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that a pool's settings name as `named_code:make`; the file that importing it writes."""
    (tmp_path / "code").mkdir()
    mark = tmp_path / "imported"
    (tmp_path / "code" / "named_code.py").write_text(
        f"""
import pathlib
pathlib.Path({str(mark)!r}).touch()
class make:
    needs = "nothing"
    def __init__(self, *asked, **more): pass
    def annotate(self, pixels): return 255 - pixels
    def fingerprint(self): return "x"
"""
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "named_code", raising=False)
    return mark


@pytest.mark.parametrize("door", ["a pool alone", "loaded later", "a run", "a saved pipeline"])
def test_code_that_a_file_names_is_not_run(run: Path, tools, named_code: Path, tmp_path: Path, door) -> None:
    table = {"canny": {"kind": "custom", "path": "named_code:make"}}
    whole = tmp_path / "whole"
    opened(run, run).save_pretrained(whole)
    pool = whole / "prw"
    if door == "a saved pipeline":
        index = json.loads((whole / "model_index.json").read_text())
        index["generation"]["annotators"] = table
        (whole / "model_index.json").write_text(json.dumps(index))
        (pool / "generation.json").unlink()
        pipe = CoLoGenPipeline.from_pretrained(whole)
        pipe.set_progress_bar_config(disable=True)
    elif door == "a run":
        config = load_config(run / "config.yaml").model_dump(mode="json", exclude_unset=True)
        config["data"]["annotators"] = table
        (run / "config.yaml").write_text(parse_config(config).to_yaml())
        pipe = opened(run, run)
    else:
        generation = json.loads((pool / "generation.json").read_text()) | {"annotators": table}
        (pool / "generation.json").write_text(json.dumps(generation))
        pipe = opened(run, pool if door == "a pool alone" else run)
        if door == "loaded later":
            pipe.weave.eject()
            pipe.load_pool(pool)
    photo = tools.picture(0, 24, 16)
    with pytest.raises(AnnotatorError, match=r"named_code:make.* not run"):
        pipe("a red square", photo, task="control", control="canny")
    assert not named_code.exists()
    pipe("a red square", photo, task="control", control="soft_edge")
    trusted = run_annotator("canny", pipe.generation.annotators, lambda: pipe.device)
    pipe.annotators["canny"] = trusted
    pipe("a red square", photo, task="control", control="canny")
    assert named_code.exists() and np.array_equal(trusted(photo), 255 - photo)


def test_more_sources_than_were_trained_are_refused(run: Path, tools) -> None:
    pipe, photo = opened(run, run), tools.picture(0, 24, 16)
    with pytest.raises(PictureError, match="2 sources, but the experts were trained with at most 1"):
        pipe("a red square", [[photo, photo]])


def test_the_whole_is_a_stock_folder_still(run: Path, tmp_path: Path) -> None:
    opened(run, run).save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/model_index.json").read_text())["generation"]["max_text_tokens"] == 9
    stock = FluxPipeline.from_pretrained(tmp_path / "whole", trust_remote_code=True)  # its pixel VAE
    assert stock.scheduler.config.shift == 2.5


def schedule(pipe: CoLoGenPipeline) -> tuple[float, bool]:
    return pipe.scheduler.config.shift, pipe.scheduler.config.use_dynamic_shifting


def test_each_pool_gets_the_schedule_of_its_own_run(run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    text = (run / "config.yaml").read_text()
    (plain / "config.yaml").write_text(text.replace("shift: 2.5", "shift: base"))
    base = schedule(CoLoGenPipeline.from_pretrained(run.parent / "base"))
    first = opened(run, run)
    assert schedule(first) == (2.5, False) != base
    first.save_pretrained(tmp_path / "whole")
    saved = CoLoGenPipeline.from_pretrained(tmp_path / "whole")
    doors = {
        "a saved pipeline": CoLoGenPipeline.from_pretrained(tmp_path / "whole", prw=plain),
        "another pool": first,
        "made of another": CoLoGenPipeline.from_pipe(saved, vae=saved.vae),
    }
    for name, pipe in doors.items():
        if name != "a saved pipeline":
            pipe.weave.eject()
            pipe.load_pool(plain)
        assert pipe.generation.shift == "base" and schedule(pipe) == base, name
        pipe.weave.eject()
        pipe.load_pool(run)
        assert schedule(pipe) == (2.5, False), name


def test_a_scheduler_of_the_callers_own_stays_where_no_run_shifts(run: Path) -> None:
    pipe = opened(run, run)
    pipe.generate_as(GenerationSettings())
    own = pipe.scheduler.from_config(pipe.scheduler.config, invert_sigmas=True)
    pipe.scheduler = own
    pipe.generate_as(GenerationSettings())
    assert pipe.scheduler is own
    pipe.generate_as(GenerationSettings(shift=4.0))
    assert schedule(pipe) == (4.0, False) and pipe.scheduler.config.invert_sigmas


def test_an_exported_expert_says_how_long_its_prompts_were(run: Path, tools, tmp_path: Path, capsys) -> None:
    opened(run, run).export_lora("grounding", tmp_path / "lora", prompt="a", image=tools.picture(0, 24, 16))
    assert "generate with max_sequence_length=9" in capsys.readouterr().err


def test_a_pool_without_a_run_is_drawn_as_before(tools, build, tmp_path: Path) -> None:
    pipe = build()
    pipe.weave.save_pretrained(tmp_path / "pool")
    other = build(experts=False)
    assert other.load_pool(tmp_path / "pool").experts == pipe.weave.experts
    assert other.generation == GenerationSettings()


def test_true_guidance_is_repeated_unless_a_call_says_otherwise(build, tools) -> None:
    pipe, photo = build(), tools.picture(0)
    plain = tools.draw(pipe, "a red circle", photo)
    asked = {"true_cfg_scale": 3.0, "negative_prompt": "blue"}
    guided = tools.draw(pipe, "a red circle", photo, **asked)
    pipe.generate_as(GenerationSettings(**asked))
    assert tools.difference(tools.draw(pipe, "a red circle", photo), guided) == 0
    assert tools.difference(tools.draw(pipe, "a red circle", photo, true_cfg_scale=1.0), plain) == 0
    other = tools.draw(pipe, "a red circle", photo, negative_prompt="small")
    assert tools.difference(other, guided) > 1e-6 and tools.difference(other, plain) > 1e-6
    stronger = tools.draw(pipe, "a red circle", photo, true_cfg_scale=5.0)
    said = tools.draw(pipe, "a red circle", photo, true_cfg_scale=5.0, negative_prompt="blue")
    assert tools.difference(stronger, said) == 0 and tools.difference(stronger, guided) > 1e-6
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt("a red circle", None, max_sequence_length=12)
    asked = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "max_sequence_length": 12}
    by_embeds = tools.draw(pipe, None, photo, true_cfg_scale=5.0, **asked)
    assert tools.difference(by_embeds, stronger) == 0
    assert tools.difference(tools.draw(pipe, None, photo, **asked), plain) == 0
    pipe.generate_as(GenerationSettings())
    with pytest.raises(GuidanceError, match="needs a negative_prompt"):
        tools.draw(pipe, "a red circle", photo, true_cfg_scale=5.0)


def test_klein_pads_prompts_as_the_run_did(made, tools, monkeypatch) -> None:
    pipe, seen = made("klein"), []
    encode = pipe.encode_prompt
    monkeypatch.setattr(
        pipe, "encode_prompt", lambda **asked: seen.append(asked["max_sequence_length"]) or encode(**asked)
    )
    pipe.generate_as(GenerationSettings(max_text_tokens=45, steps=1))
    pipe("a", tools.picture(0))
    assert seen == [45]
