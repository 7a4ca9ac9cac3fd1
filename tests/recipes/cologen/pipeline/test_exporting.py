"""One expert of a pipeline's pool as a plain LoRA: it opens in stock diffusers, as far off as measured."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline

import prw
from recipes.cologen.errors import RoutingQuestionError
from recipes.cologen.pipeline import CoLoGenPipeline

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])


@pytest.fixture(params=["flux1", "klein"])
def pair(request: pytest.FixtureRequest, made: Any, tools: SimpleNamespace) -> SimpleNamespace:
    """A pipeline with a pool, the same without, and the stock pipeline over the latter's parts."""
    bare = made(request.param, experts=False)
    stock_class = FluxPipeline if request.param == "flux1" else Flux2KleinPipeline
    stock = stock_class(**copy.deepcopy(bare.components))
    pipe = type(bare)(**copy.deepcopy(bare.components))
    tools.add_pool(pipe.transformer)
    for each in (bare, pipe, stock):
        each.set_progress_bar_config(disable=True)
    return SimpleNamespace(pipe=pipe, bare=bare, stock=stock)


def latents(pipe: Any, kind: str = "latent", **call: Any) -> torch.Tensor:
    drawn: torch.Tensor = pipe(
        **call, generator=torch.Generator().manual_seed(3), output_type=kind, return_dict=False
    )[0]
    return drawn.double()


def pictures(pipe: Any, **call: Any) -> torch.Tensor:
    return latents(pipe, "pt", **call)


@both_timesteps
def test_the_lora_draws_as_far_from_the_pool_as_was_measured(pair, photo, tmp_path, capsys, timestep) -> None:
    call = {"prompt": "a", "image": photo, "num_inference_steps": 2, "source_timestep": timestep}
    report = pair.pipe.export_lora("grounding", tmp_path, seed=3, **call)
    pooled = latents(pair.pipe, **call)
    base = latents(pair.bare, **call)
    pair.bare.load_lora_weights(tmp_path)
    lora = latents(pair.bare, **call)
    found = float((pooled - lora).norm() / lora.norm())
    assert report.output_difference == pytest.approx(found, rel=1e-3) and found > 1e-3
    assert (lora - base).norm() > 1e-2
    assert 0 < report.chosen < 1 and 0.5 <= report.mean_gate < 1 and not report.exact
    printed = capsys.readouterr().err
    assert f"grounding as a plain LoRA: {tmp_path}" in printed
    assert f"{report.chosen:.1%} of the source's tokens" in printed
    assert f"{report.output_difference:.3f} between the latents" in printed
    assert f"{report.output_difference:.3f} |" in (tmp_path / "README.md").read_text()


def test_it_opens_in_the_stock_pipeline(pair, photo, tmp_path) -> None:
    pair.pipe.export_lora("grounding", tmp_path, prompt="a", image=photo, num_inference_steps=1)
    size = {"prompt": "a", "height": 48, "width": 32, "num_inference_steps": 2}
    if isinstance(pair.stock, Flux2KleinPipeline):
        size |= {"guidance_scale": 1.0, "max_sequence_length": 128}
    else:
        size |= {"max_sequence_length": 12}
    before = pictures(pair.stock, **size)
    pair.stock.load_lora_weights(tmp_path, adapter_name="grounding")
    with_lora = pictures(pair.stock, **size)
    assert (with_lora - before).norm() > 1e-2
    pair.bare.load_lora_weights(tmp_path)
    size.pop("guidance_scale", None)
    assert torch.allclose(with_lora, pictures(pair.bare, **size), atol=1e-5)
    pair.stock.fuse_lora()
    pair.stock.unload_lora_weights()
    assert torch.allclose(with_lora, pictures(pair.stock, **size | stock_only(pair.stock)), atol=1e-4)


def stock_only(stock: Any) -> dict[str, float]:
    return {"guidance_scale": 1.0} if isinstance(stock, Flux2KleinPipeline) else {}


def test_a_pool_of_one_is_no_lora_of_all_tokens(build, photo, tmp_path) -> None:
    pipe: CoLoGenPipeline = build(pool={"experts": ["only"]})
    report = pipe.export_lora("only", tmp_path, prompt="a", image=photo, num_inference_steps=1)
    assert report.chosen == report.mean_gate == 1.0
    assert not report.exact and report.max_difference > 0.1  # noise and text see no experts in the pool
    text = " ".join((tmp_path / "README.md").read_text().split())
    assert "That was not every token" in text and "does the same" not in text


def test_it_is_measured_as_it_is_drawn(build, photo, tmp_path) -> None:
    pipe: CoLoGenPipeline = build()
    call = {"prompt": "a", "image": photo, "num_inference_steps": 1}
    early = pipe.export_lora("grounding", tmp_path, as_of="inpainting", **call)
    assert early.chosen == 0 and early.mean_difference == pytest.approx(1)  # it was not there yet
    guided = pipe.export_lora(
        "inpainting", tmp_path, true_cfg_scale=2.0, negative_prompt="blue square", task="editing", **call
    )
    assert guided.chosen > 0 and guided.path == Path(tmp_path)


def test_what_cannot_be_measured_is_refused(build, photo, tmp_path) -> None:
    pipe: CoLoGenPipeline = build()
    with pytest.raises(RoutingQuestionError, match=r"there is no image: .*pipe\.weave\.export_lora"):
        pipe.export_lora("grounding", tmp_path, prompt="a")
    with pytest.raises(RoutingQuestionError, match="leave generator, output_type out"):
        pipe.export_lora("grounding", tmp_path, prompt="a", image=photo, output_type="pil", generator=None)
    with pytest.raises(prw.PoolError, match="no expert 'x'"):
        pipe.export_lora("x", tmp_path, prompt="a", image=photo)
    with pytest.raises(prw.PoolError, match="no pool to export of"):
        build(experts=False).export_lora("x", tmp_path, prompt="a", image=photo)
    assert list(tmp_path.iterdir()) == []
