"""What diffusers' own tests ask of a pipeline's parts and files, with and without a pool."""

import json

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline
from peft import LoraConfig

from recipes.cologen.errors import PromptError
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.pipeline import CoLoGenPipeline

STOCK = {"flux1": FluxPipeline, "klein": Flux2KleinPipeline}
TEXT = {
    "flux1": ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"],
    "klein": ["text_encoder", "tokenizer"],
}


@pytest.fixture(params=["flux1", "klein"])
def family(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["pool", "no pool"])
def experts(request):
    return request.param


@pytest.fixture
def pipe(made, family, experts):
    return made(family, experts=experts)


@torch.no_grad()
def encoded(pipe, family):
    """Embeddings of one prompt, as the pipeline's own call takes them."""
    if family == "flux1":
        embeds, pooled, _ = pipe.encode_prompt("a red circle", max_sequence_length=12)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    embeds, _ = pipe.encode_prompt("a red circle", max_sequence_length=128)
    return {"prompt_embeds": embeds}


def test_prompts_are_encoded_in_one_pipeline_and_drawn_in_another(pipe, tools, photo, family) -> None:
    whole = tools.draw(pipe, "a red circle", photo)
    parts = pipe.components
    writer = type(pipe)(**{name: part if name in TEXT[family] else None for name, part in parts.items()})
    embeds = encoded(writer, family)
    reader = type(pipe)(**{name: None if name in TEXT[family] else part for name, part in parts.items()})
    reader.set_progress_bar_config(disable=True)
    assert tools.difference(whole, tools.draw(reader, None, photo, **embeds)) == 0
    several = tools.draw(reader, None, photo, num_images_per_prompt=2, **embeds)
    assert len(several.images) == 2


def test_a_prompt_without_text_parts_is_refused_with_what_to_give(pipe, tools, photo, family) -> None:
    embeds = encoded(pipe, family)
    for name in TEXT[family]:
        setattr(pipe, name, None)
    missing = "the pipeline has no " + ", ".join(name for name in pipe.components if name in TEXT[family])
    with pytest.raises(PromptError, match=f"{missing}.*prompt_embeds"):
        tools.draw(pipe, "a red circle", photo)
    with pytest.raises(PromptError, match=f"{missing}.*negative_prompt_embeds"):
        tools.draw(pipe, None, photo, negative_prompt="blue", true_cfg_scale=3.0, **embeds)


def test_guidance_by_embeddings_needs_no_text_parts(pipe, tools, photo, family) -> None:
    embeds = encoded(pipe, family)
    negative = {f"negative_{name}": torch.zeros_like(value) for name, value in embeds.items()}
    plain = tools.draw(pipe, "a red circle", photo)
    for name in TEXT[family]:
        setattr(pipe, name, None)
    guided = tools.draw(pipe, None, photo, true_cfg_scale=3.0, **embeds, **negative)
    assert tools.difference(plain, guided) > 1e-4


def test_a_pipeline_of_its_own_components_draws_the_same(pipe, tools, photo) -> None:
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert tools.difference(tools.draw(pipe, "a", photo), tools.draw(again, "a", photo)) == 0


def test_from_pipe_shares_the_parts_pool_and_all(pipe, tools, photo, experts) -> None:
    expected = tools.draw(pipe, "a", photo)
    again = type(pipe).from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert again.transformer is pipe.transformer and again.vae is pipe.vae
    assert (again.weave is not None) == experts
    assert again.config.source_timestep == pipe.config.source_timestep
    assert tools.difference(expected, tools.draw(again, "a", photo)) == 0


def test_from_pipe_goes_to_the_stock_pipeline_and_back(made, tools, photo, family) -> None:
    pipe = made(family)
    expected = tools.draw(pipe, "a", photo)
    stock = STOCK[family].from_pipe(pipe)
    assert type(stock) is STOCK[family] and stock.transformer is pipe.transformer
    again = type(pipe).from_pipe(stock)
    again.set_progress_bar_config(disable=True)
    assert again.weave is not None and again.weave.experts == pipe.weave.experts
    assert tools.difference(expected, tools.draw(again, "a", photo)) == 0


def test_from_pipe_takes_the_tiny_vae_along(build, tools, photo) -> None:
    pipe = build(pixel_vae=True)
    expected = tools.draw(pipe, "a", photo)
    again = CoLoGenPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.vae, PixelUnshuffleVAE) and again.vae is pipe.vae
    assert tools.difference(expected, tools.draw(again, "a", photo)) == 0
    with_own = CoLoGenPipeline.from_pipe(FluxPipeline(**pipe.components))
    assert with_own.vae is pipe.vae
    stock = FluxPipeline.from_pipe(pipe, vae=pipe.vae)  # its own signature knows AutoencoderKL alone
    assert stock.vae is pipe.vae


def test_from_pipe_keeps_the_tiny_vae_savable(build, tools, photo, tmp_path) -> None:
    again = CoLoGenPipeline.from_pipe(build(pixel_vae=True))
    again.set_progress_bar_config(disable=True)
    again.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"][1] == "PixelUnshuffleVAE"
    read = CoLoGenPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert tools.difference(tools.draw(again, "a", photo), tools.draw(read, "a", photo)) < 1e-5


def test_to_a_dtype_takes_every_part_and_the_pool(pipe, experts) -> None:
    pipe.to(torch.bfloat16)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for model in models for p in model.parameters() if p.is_floating_point()} == {
        torch.bfloat16
    }
    assert pipe.dtype == torch.bfloat16
    assert any(".prw_" in name for name, _ in pipe.transformer.named_parameters()) == experts


FORMS = {
    "safetensors": ({}, {}),
    "pickled": ({"safe_serialization": False}, {}),
    "in shards": ({"max_shard_size": "20KB"}, {}),
    "a variant": ({"variant": "fp16"}, {"variant": "fp16"}),
    "onto a device": ({}, {"device_map": "cpu"}),
    "with little memory": ({}, {"low_cpu_mem_usage": False}),
}


@pytest.mark.parametrize(("written", "read"), FORMS.values(), ids=FORMS)
def test_every_form_of_file_comes_back(pipe, tools, photo, tmp_path, written, read, experts) -> None:
    expected = tools.draw(pipe, "a", photo)
    pipe.save_pretrained(tmp_path, **written)
    again = type(pipe).from_pretrained(tmp_path, **read)
    again.set_progress_bar_config(disable=True)
    assert (again.weave is not None) == experts
    state, found = pipe.transformer.state_dict(), again.transformer.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[name], found[name]) for name in state)
    assert tools.difference(expected, tools.draw(again, "a", photo)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, {"transformer": torch.bfloat16}])
def test_every_dtype_comes_back(pipe, tmp_path, dtype) -> None:
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path, dtype=dtype)
    whole = dtype["transformer"] if isinstance(dtype, dict) else dtype
    base = {p.dtype for name, p in again.transformer.named_parameters() if ".prw_" not in name}
    text = {p.dtype for p in again.text_encoder.parameters()}
    assert base == {whole}
    assert text == {torch.float32 if isinstance(dtype, dict) else whole}


def test_a_variant_that_is_not_there_is_an_error(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"variant|fp16"):
        type(pipe).from_pretrained(tmp_path, variant="fp16")


def test_slicing_of_the_vae_changes_no_picture(made, tools, photo, family) -> None:
    pipe = made(family)
    pictures = [photo, tools.picture(1)]
    plain = tools.draw(pipe, ["a", "a"], pictures)
    pipe.vae.enable_slicing()
    assert tools.difference(plain, tools.draw(pipe, ["a", "a"], pictures)) < 1e-5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_only_the_newest_expert_and_a_named_lora_train(made, family) -> None:
    pipe = made(family)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "style")
    pipe.set_adapters("style")
    pipe.weave.add_expert("third")
    trains = {name for name, p in pipe.transformer.named_parameters() if p.requires_grad}
    assert {name for name in trains if ".lora_" not in name} == {
        name
        for name, p in pipe.transformer.named_parameters()
        if any(p is one for one in pipe.weave.trainable_parameters())
    }
    assert any(".lora_A.style" in name for name in trains)
    assert not any(".prw_A0." in name or ".prw_A1." in name for name in trains)


def test_the_same_call_twice_gives_the_same_bits(pipe, tools, photo) -> None:
    one, two = (tools.draw(pipe, "a", photo).images for _ in range(2))
    assert np.array_equal(one, two)
