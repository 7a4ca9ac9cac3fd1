"""Diffusers' own saving of a model with a pool: refused where the file could not be read, with what works."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

import prw
from tests.prw.hosts.conftest import LORA, POOL

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
REFUSED = r"lost on loading.*prw\.save_pipeline\(.*weave\.save_pretrained\(.*weave\.eject\(\)"


def weights_below(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]


@pytest.fixture
def pool(denoiser, twin, wake):
    weave = prw.inject(denoiser.model, **POOL)
    wake(weave)
    return weave


WAYS = {
    "save_pretrained": {},
    "pickled": {"safe_serialization": False},
    "in shards": {"max_shard_size": "2KB"},
    "a variant": {"variant": "fp16"},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_model_with_a_pool_is_not_saved_under_names_that_no_model_has(denoiser, pool, tmp_path, options):
    before = denoiser()
    with pytest.raises(prw.UnsupportedError, match=REFUSED):
        denoiser.model.save_pretrained(tmp_path, **options)
    assert not weights_below(tmp_path)
    assert torch.equal(denoiser(), before)


def test_nor_is_a_pipeline_nor_one_with_a_lora_around_the_pool(denoiser, pool, make_pipeline, tmp_path):
    pipe = make_pipeline(denoiser)
    with pytest.raises(prw.UnsupportedError, match=REFUSED):
        pipe.save_pretrained(tmp_path)
    denoiser.model.add_adapter(LORA, "style")
    with pytest.raises(prw.UnsupportedError, match=REFUSED):
        pipe.save_pretrained(tmp_path)
    with pytest.raises(prw.UnsupportedError, match=REFUSED):
        denoiser.model.save_pretrained(tmp_path)
    assert not weights_below(tmp_path)


def test_nothing_is_pushed_to_the_hub(denoiser, pool, make_pipeline, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("something was uploaded")

    for host in (ModelMixin, DiffusionPipeline):
        monkeypatch.setattr(host, "_upload_folder", never)
    for module in ("diffusers.utils.hub_utils", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(
            f"{module}.create_repo", lambda name, **kwargs: type("Repo", (), {"repo_id": name})
        )
    for host in (denoiser.model, make_pipeline(denoiser)):
        with pytest.raises(prw.UnsupportedError, match=REFUSED):
            host.push_to_hub("me/mine")


def test_a_text_encoder_with_a_pool_is_not_lost_with_the_pipeline(tmp_path):
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    encoder = CLIPTextModel(config)
    prw.inject(encoder, **POOL)
    nothing = dict.fromkeys(["vae", "transformer", "tokenizer", "text_encoder_2", "tokenizer_2"])
    pipe = FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=encoder, **nothing)
    with pytest.raises(prw.UnsupportedError, match=REFUSED):
        pipe.save_pretrained(tmp_path)
    assert not weights_below(tmp_path)


def test_what_the_refusal_advises_works(denoiser, pool, twin, make_pipeline, tmp_path):
    expected = denoiser()
    prw.save_pipeline(make_pipeline(denoiser), tmp_path / "pool")
    pool.eject()
    base = denoiser()
    make_pipeline(denoiser).save_pretrained(tmp_path / "base")
    prw.load(denoiser.model, tmp_path / "pool")
    assert torch.equal(denoiser(), expected)
    part = "unet" if isinstance(denoiser.model, UNet2DConditionModel) else "transformer"
    read = twin()
    read.model = type(denoiser.model).from_pretrained(tmp_path / "base" / part).eval()
    assert torch.allclose(read(), base, atol=1e-6)
    prw.load_pipeline(make_pipeline(read), tmp_path / "pool")
    assert torch.allclose(read(), expected, atol=1e-6)


def test_the_state_is_shown_to_everybody_else(denoiser, pool, tmp_path):
    state = copy.deepcopy(denoiser.model.state_dict())
    torch.save(state, tmp_path / "state.pt")
    expected = denoiser()
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter.add_(1.0)
    denoiser.model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(denoiser(), expected)


def test_a_model_without_experts_left_is_saved_as_ever(denoiser, pool, tmp_path):
    base = copy.deepcopy(denoiser.model)
    prw.Weave(base).eject()
    base.save_pretrained(tmp_path)
    assert weights_below(tmp_path)


def test_save_lora_adapter_keeps_the_pools_settings_or_refuses(denoiser, pool, twin, make_pipeline, tmp_path):
    expected = denoiser()
    with pytest.raises(prw.UnsupportedError, match=r"safe_serialization=False.*settings"):
        denoiser.model.save_lora_adapter(tmp_path, safe_serialization=False)
    assert not weights_below(tmp_path)
    denoiser.model.save_lora_adapter(tmp_path, weight_name="mine.safetensors")
    other = twin()
    prw.load_pipeline(make_pipeline(other), tmp_path / "mine.safetensors")
    assert torch.equal(other(), expected)
    with pytest.raises(prw.StorageError, match=r"mine\.safetensors"):
        prw.load_pipeline(make_pipeline(twin()), tmp_path)
    assert get_peft_model_state_dict(denoiser.model, adapter_name="default"), "others may have them"


def test_a_file_without_settings_is_refused_with_the_reason(denoiser, pool, twin, make_pipeline, tmp_path):
    weights = get_peft_model_state_dict(denoiser.model, adapter_name="default")
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=weights)
    other = twin()
    before = other()
    component = None if isinstance(other.model, FluxTransformer2DModel) else "unet"
    with pytest.raises(prw.StorageError, match="settings"):
        prw.load_pipeline(make_pipeline(other), tmp_path, component=component)
    assert torch.equal(other(), before)
