"""Pools of whole pipelines: saved by prw or by diffusers, loaded by prw, used by the pipeline's own call."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import prw
from tests.prw.hosts.conftest import LORA, POOL

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def pipe(denoiser, twin, make_pipeline, wake):
    """A pipeline whose denoiser has a pool, added as a user of diffusers would."""
    made = make_pipeline(denoiser)
    denoiser.model.add_adapter(prw.PrwConfig(**POOL))
    wake(prw.Weave(denoiser.model))
    return made


def name_of(pipe):
    return "unet" if hasattr(pipe, "unet") else "transformer"


def test_what_prw_saves_another_pipeline_loads(pipe, denoiser, twin, make_pipeline, tmp_path):
    expected = denoiser()
    prw.save_pipeline(pipe, tmp_path)
    assert "load_pipeline" in (tmp_path / "README.md").read_text()
    other = twin()
    weave = prw.load_pipeline(make_pipeline(other), tmp_path)
    assert weave.model is other.model
    assert weave.experts == ("a", "b")
    assert torch.equal(other(), expected)
    third = twin()
    prw.load_pipeline(make_pipeline(third), tmp_path, component=name_of(pipe), adapter="mine")
    assert third.model.active_adapters() == ["mine"]
    assert torch.equal(third(), expected)


def test_what_diffusers_saves_prw_loads(pipe, denoiser, twin, make_pipeline, tmp_path):
    expected = denoiser()
    denoiser.model.save_lora_adapter(tmp_path)
    other = twin()
    prw.load_pipeline(make_pipeline(other), tmp_path)
    assert torch.equal(other(), expected)
    with pytest.raises(Exception, match=r"LoraConfig|list index"):
        twin().model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)


def test_names_may_begin_with_the_component_as_in_save_lora_weights(
    pipe, denoiser, twin, make_pipeline, tmp_path
):
    denoiser.model.save_lora_adapter(tmp_path / "plain")
    weights = load_file(tmp_path / "plain" / FILE)
    config = denoiser.model.peft_config["default"].to_dict()
    name = name_of(pipe)
    packed = {f"{name}.{key}": weight for key, weight in weights.items()}
    metadata = json.dumps({f"{name}.{key}": value for key, value in config.items()}, default=list)
    (tmp_path / "packed").mkdir()
    save_file(packed, tmp_path / "packed" / FILE, metadata={"lora_adapter_metadata": metadata})
    other = twin()
    prw.load_pipeline(make_pipeline(other), tmp_path / "packed")
    assert torch.equal(other(), denoiser())


def test_an_earlier_stage_goes_into_the_larger_pool_of_a_pipeline(
    pipe, denoiser, twin, make_pipeline, wake, tmp_path
):
    expected = denoiser()
    prw.save_pipeline(pipe, tmp_path)
    other = twin()
    larger = prw.inject(other.model, rank=4, experts=["a", "b", "c"])
    wake(larger)
    assert prw.load_pipeline(make_pipeline(other), tmp_path).experts == ("a", "b", "c")
    with larger.as_of("b"):
        assert torch.equal(other(), expected)


def test_the_pipelines_own_call_uses_and_scales_it(make_host, make_pipeline, wake):
    host = make_host("flux")
    host.model.eval()
    pipe = make_pipeline(host)
    pipe.set_progress_bar_config(disable=True)

    def picture(**kwargs):
        return pipe(
            prompt_embeds=host.inputs["encoder_hidden_states"],
            pooled_prompt_embeds=host.inputs["pooled_projections"],
            num_inference_steps=1,
            height=32,
            width=32,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **kwargs,
        ).images

    before = picture()
    wake(prw.inject(host.model, **POOL))
    after = picture()
    assert not torch.equal(after, before)
    assert torch.equal(picture(joint_attention_kwargs={"scale": 0.0}), before)
    assert torch.equal(picture(), after)


def test_what_is_no_pipeline_has_no_such_part_or_is_ambiguous_is_refused(
    pipe, denoiser, make_pipeline, tmp_path
):
    with pytest.raises(prw.PoolError, match=r"expected a diffusers pipeline.*prw\.load"):
        prw.load_pipeline(denoiser.model, tmp_path)
    with pytest.raises(prw.PoolError, match=f"text_encoder_9.*its models are {name_of(pipe)}"):
        prw.load_pipeline(pipe, tmp_path, component="text_encoder_9")

    class Two(DiffusionPipeline):
        def __init__(self, transformer, transformer_2):
            super().__init__()
            self.register_modules(transformer=transformer, transformer_2=transformer_2)

    two = Two(denoiser.model, denoiser.model)
    with pytest.raises(prw.PoolError, match=r"transformer, transformer_2.*component="):
        prw.save_pipeline(two, tmp_path / "pool")
    prw.save_pipeline(two, tmp_path / "pool", component="transformer_2")
    assert (tmp_path / "pool" / "adapter_config.json").exists()


def test_a_lora_a_wreck_and_another_base_are_refused_and_change_nothing(
    pipe, denoiser, twin, make_pipeline, make_host, tmp_path
):
    fresh = twin()
    before = fresh()
    fresh.model.add_adapter(LORA, "style")
    fresh.model.save_lora_adapter(tmp_path / "lora", "style")
    other = make_pipeline(twin())
    with pytest.raises(prw.StorageError, match="load_lora_weights"):
        prw.load_pipeline(other, tmp_path / "lora")
    (tmp_path / "wreck").mkdir()
    (tmp_path / "wreck" / FILE).write_bytes(b"no weights")
    with pytest.raises(prw.StorageError, match="damaged"):
        prw.load_pipeline(other, tmp_path / "wreck")
    with pytest.raises(prw.StorageError, match="no such folder"):
        prw.load_pipeline(other, tmp_path / "nowhere")
    prw.inject(make_host("llama").model, **POOL).save_pretrained(tmp_path / "llama")
    with pytest.raises(prw.StorageError, match="of another model"):
        prw.load_pipeline(other, tmp_path / "llama")
    host = twin()
    host.model = other.components[name_of(pipe)]
    assert torch.equal(host(), before)


def test_a_pool_under_another_name_is_named_on_saving(pipe, denoiser, tmp_path):
    with pytest.raises(prw.PoolError, match=r"under adapter 'mine', but under 'default'.*adapter='default'"):
        prw.save_pipeline(pipe, tmp_path, adapter="mine")


def test_a_pool_of_another_component_is_named_on_saving(pipe, tmp_path):
    pipe = SimpleNamespace(components={**pipe.components, "text_encoder": torch.nn.Linear(2, 2)})
    with pytest.raises(
        prw.PoolError, match=r"text_encoder of .* has no pool.*component='(unet|transformer)'"
    ):
        prw.save_pipeline(pipe, tmp_path, component="text_encoder")
