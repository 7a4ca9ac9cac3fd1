"""Opening and saving: a base with a pool, a run's own settings, the whole in one folder, stock loaders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

import prw
from recipes.cologen.errors import BaseModelError, RunFolderError, SourceStreamError
from recipes.cologen.flux import FluxModel, generate
from recipes.cologen.pipeline import CoLoGenPipeline

ROUNDING = 1e-5
"""Weights in a file's memory may lie differently than others do, which moves a last bit of a product."""


@pytest.mark.parametrize("pixel_vae", [False, True])
def test_the_whole_comes_back(build, tools, photo, tmp_path, pixel_vae) -> None:
    pipe = build(pixel_vae=pixel_vae)
    pipe.register_to_config(source_timestep="zero")
    before = tools.draw(pipe, "a red circle", photo)
    pipe.save_pretrained(tmp_path / "whole")
    assert tools.difference(before, tools.draw(pipe, "a red circle", photo)) == 0  # saving changed nothing
    again = CoLoGenPipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    assert again.weave.experts == pipe.weave.experts and again.config.source_timestep == "zero"
    assert not again.transformer.training and again.name_or_path == str(tmp_path / "whole")
    for name in pipe.layout.parts:
        if isinstance(part := getattr(pipe, name), torch.nn.Module):
            kept, read = part.state_dict(), getattr(again, name).state_dict()
            assert kept.keys() == read.keys() and all(torch.equal(kept[key], read[key]) for key in kept)
    assert tools.difference(before, tools.draw(again, "a red circle", photo)) < ROUNDING
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice/prw/adapter_model.safetensors").read_bytes() == (
        tmp_path / "whole/prw/adapter_model.safetensors"
    ).read_bytes()


def test_the_folder_is_a_stock_base_too(build, tools, tmp_path) -> None:
    pipe = build()
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "CoLoGenPipeline"
    keys = set(FluxPipeline.from_pretrained(tmp_path).transformer.state_dict())
    assert keys == set(tools.base().transformer.state_dict())
    assert FluxModel.load(tmp_path).transformer.config.num_layers == 2


def test_a_base_and_a_pool_are_given_apart(build, tools, photo, tmp_path) -> None:
    pipe = build()
    before = tools.draw(pipe, "a", photo)
    pipe.weave.save_pretrained(tmp_path / "pool")
    build(experts=False).save_pretrained(tmp_path / "base")
    both = CoLoGenPipeline.from_pretrained(tmp_path / "base", prw=tmp_path / "pool")
    later = CoLoGenPipeline.from_pretrained(str(tmp_path / "base"))
    assert later.weave is None
    prw.load_pipeline(later, tmp_path / "pool")
    for other in (both, later):
        assert tools.difference(before, tools.draw(other, "a", photo)) < ROUNDING
    assert both.text_encoder.dtype == both.transformer.dtype == torch.float32
    half = CoLoGenPipeline.from_pretrained(tmp_path / "base", prw=tmp_path / "pool", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16 and np.isfinite(tools.draw(half, "a", photo).images).all()
    prw.save_pipeline(both, tmp_path / "again")
    assert prw.load(tools.base().transformer, tmp_path / "again").experts == pipe.weave.experts


def test_a_run_says_how_its_source_was_trained(finished_run: Path, tools) -> None:
    settings = (finished_run / "config.yaml").read_text()
    base = next(line.split()[-1] for line in settings.splitlines() if line.startswith("  path:"))
    stage = finished_run / "checkpoints" / "grounding"
    experts = ("inpainting", "grounding", "control")
    for path, known in ((finished_run, experts), (stage, experts[:2]), (stage / "prw", experts[:2])):
        pipe = CoLoGenPipeline.from_pretrained(base, prw=path)
        assert pipe.config.source_timestep == "zero" and pipe.weave.experts == known
    assert (
        CoLoGenPipeline.from_pretrained(base, prw=stage, source_timestep="same").config.source_timestep
        == "same"
    )


def test_it_draws_what_the_recipes_sampling_draws(finished_run: Path, tools) -> None:
    base = next(p for p in finished_run.parent.iterdir() if (p / "model_index.json").is_file())
    pipe = CoLoGenPipeline.from_pretrained(base, prw=finished_run)
    model = FluxModel.load(base)
    prw.load(model.transformer, finished_run / "checkpoints/control/prw")
    source = tools.picture(0, 24, 16)
    pixels = torch.from_numpy(source).permute(2, 0, 1)[None] / 127.5 - 1
    asked = {"height": 24, "width": 16, "steps": 2, "source_timestep": "zero"}
    expected = generate(model, ["small red circle"], pixels, generator=0, **asked) / 2 + 0.5
    size = {"height": 24, "width": 16}  # the run's own size is another
    drawn = tools.draw(pipe, "small red circle", source, output_type="pt", **size).images
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)


def test_it_is_made_from_another_pipeline(build, tools, photo) -> None:
    pipe = build()
    stock = FluxPipeline(**pipe.components)
    again = CoLoGenPipeline.from_pipe(stock, source_timestep="zero")
    assert again.config.source_timestep == "zero"
    assert (
        tools.difference(tools.draw(again, "a", photo), tools.draw(pipe, "a", photo, source_timestep="zero"))
        == 0
    )


def test_what_would_not_come_back_is_not_saved(build, tmp_path) -> None:
    pipe = build()
    with pytest.raises(prw.UnsupportedError, match=r"pipe\.push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)
    pipe.transformer.proj_out.to("meta")
    with pytest.raises(prw.UnsupportedError, match="the transformer is offloaded"):
        pipe.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened_says_why(build, tmp_path) -> None:
    build(experts=False).save_pretrained(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match="no FLUX base"):
        CoLoGenPipeline.from_pretrained(tmp_path / "empty")
    with pytest.raises(prw.StorageError, match="empty"):
        CoLoGenPipeline.from_pretrained(tmp_path / "base", prw=tmp_path / "empty")
    with pytest.raises(SourceStreamError, match="expected 'same' or 'zero'"):
        CoLoGenPipeline.from_pretrained(tmp_path / "base", source_timestep="one")
    (tmp_path / "empty" / "config.yaml").write_text("name: x\nbase: {path: nowhere}\n")
    with pytest.raises(RunFolderError, match="no finished stage"):
        CoLoGenPipeline.from_pretrained(tmp_path / "base", prw=tmp_path / "empty")
