"""The same pipeline on FLUX.2 klein: stock outputs, sources shared by all prompts, hosts, one folder."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from recipes.cologen.errors import GuidanceError, PromptError
from recipes.cologen.flux.families import load_base_model
from recipes.cologen.flux.sampling import generate
from recipes.cologen.flux.two_step import SourceKV
from recipes.cologen.pipeline import CoLoGenFlux2Pipeline, pipeline_over
from recipes.cologen.tools.random_flux2 import build_random_flux2

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])


@pytest.fixture
def flux2(tools: SimpleNamespace) -> CoLoGenFlux2Pipeline:
    model = build_random_flux2(double_blocks=1, single_blocks=2)
    tools.add_pool(model.transformer)
    pipe = pipeline_over(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_without_a_source_it_is_stock_klein(flux2, tools) -> None:
    stock = Flux2KleinPipeline(**flux2.components, is_distilled=False)
    stock.set_progress_bar_config(disable=True)
    size = {"height": 48, "width": 32, "num_images_per_prompt": 2}
    length = {"max_sequence_length": 128}
    plain = tools.draw(stock, None, prompt="a red circle", guidance_scale=1.0, **size, **length)
    assert tools.difference(tools.draw(flux2, **size), plain) == 0
    steered = tools.draw(stock, None, prompt="a red circle", guidance_scale=3.0, **size, **length)
    assert tools.difference(tools.draw(flux2, true_cfg_scale=3.0, negative_prompt="", **size), steered) == 0


@both_timesteps
def test_it_draws_what_the_recipes_sampling_draws(flux2, tools, photo, timestep) -> None:
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    asked = {"height": 48, "width": 32, "steps": 2, "source_timestep": timestep}
    expected = generate(flux2.family.model(), ["a red circle"], pixels, generator=0, **asked) / 2 + 0.5
    drawn = tools.draw(flux2, "a red circle", photo, output_type="pt", source_timestep=timestep).images
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)


def test_one_source_is_computed_once_for_all_prompts(flux2, tools, photo, monkeypatch) -> None:
    rows, write = [], SourceKV.write

    def counted(kept, site, pair):
        rows.append(pair.key.shape[0])
        write(kept, site, pair)

    monkeypatch.setattr(SourceKV, "write", counted)
    asked = {"source_timestep": "zero", "num_inference_steps": 3, "output_routing": True}
    prompts = ["a red circle", "blue"]
    cached = tools.draw(flux2, prompts, photo, **asked)
    assert rows == [1, 1, 1]  # three blocks, one source, two prompts
    uncached = tools.draw(flux2, prompts, photo, cache_source=False, **asked)
    assert len(rows) == 12 and tools.difference(cached, uncached) == 0
    assert torch.equal(cached.routing.chosen[:, :, 0], cached.routing.chosen[:, :, 1])
    assert cached.routing.sites == tuple(site.name for site in flux2.weave.sites)


@both_timesteps
def test_batches_types_and_callbacks(flux2, tools, photo, timestep) -> None:
    pictures = [photo, tools.picture(1)]
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    together = tools.draw(
        flux2, ["a", "blue square"], pictures, generator=generators, source_timestep=timestep
    ).images
    for n, prompt in enumerate(["a", "blue square"]):
        alone = tools.draw(flux2, prompt, pictures[n], seed=n, source_timestep=timestep).images
        assert tools.difference(together[n], alone[0]) < 1e-5
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = True
        return tensors

    drawn = tools.draw(flux2, "a", photo, output_type="pil", callback_on_step_end=watch, strength=0.5).images
    assert drawn[0].size == (32, 48) and seen == [0]
    assert tools.draw(flux2, "a", photo, output_type="latent").images.shape == (1, 6, 128)
    assert np.isfinite(tools.draw(flux2.to(torch.bfloat16), "a", photo).images).all()


@both_timesteps
def test_hosts_change_no_picture(flux2, tools, photo, timestep) -> None:
    asked = {"source_timestep": timestep, "num_inference_steps": 3}
    plain = tools.draw(flux2, "a", photo, **asked)
    cpu = torch.device("cpu")
    flux2.transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    assert tools.difference(plain, tools.draw(flux2, "a", photo, **asked)) < 1e-5


def test_the_whole_comes_back(flux2, tools, photo, tmp_path) -> None:
    flux2.register_to_config(source_timestep="zero", is_distilled=True)
    mask = np.zeros((48, 32), dtype=bool)
    mask[:20] = True
    asked = {"task": "inpainting", "mask": mask, "as_of": True}
    before = tools.draw(flux2, "a", photo, **asked)
    flux2.save_pretrained(tmp_path)
    again = CoLoGenFlux2Pipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.config.source_timestep == "zero" and again.config.is_distilled
    kept, read = flux2.transformer.state_dict(), again.transformer.state_dict()
    assert kept.keys() == read.keys() and all(torch.equal(kept[name], read[name]) for name in kept)
    # Weights in a file's memory lie differently than others do, which moves a last bit of a product.
    assert tools.difference(before, tools.draw(again, "a", photo, **asked)) < 1e-5
    assert load_base_model(tmp_path).transformer.config.num_layers == 1


def test_what_flux2_does_not_have_is_refused(flux2, photo) -> None:
    with pytest.raises(PromptError, match=r"prompt_2 is for FLUX\.1"):
        flux2("a", photo, prompt_2="b")
    with pytest.raises(GuidanceError, match="no guidance embedding"):
        flux2("a", photo, guidance_scale=4.0)
    with pytest.raises(PromptError, match="at most 128 are read"):
        flux2("red " * 60, photo)
