"""Models whose modules have moved since a pool was saved: a PRW folder loads where a LoRA's loads."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import prw

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

POOL = {"rank": 2, "experts": ["a", "b"]}
HIDDEN = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Old(nn.Module):
    """A model as it was: its blocks directly inside."""

    def __init__(self, stack):
        super().__init__()
        self.blocks = stack.blocks

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class New(nn.Module):
    """The same model of a later version, which says where its blocks have gone."""

    _checkpoint_conversion_mapping = {r"^blocks": "model.language_model.blocks"}  # noqa: RUF012

    def __init__(self, stack):
        super().__init__()
        self.model = nn.ModuleDict({"language_model": stack})

    def forward(self, hidden):
        return self.model["language_model"](hidden)


@pytest.fixture
def versions(make_plain):
    """Makers of the old and the new version with the same weights."""
    base = make_plain().state_dict()

    def stack():
        made = make_plain().eval()
        made.load_state_dict(base)
        return made

    return lambda: Old(stack()).eval(), lambda: New(stack()).eval()


@pytest.mark.parametrize("target", ["kv", "all-linear", ["to_k", "to_v"], ["blocks.0.to_k", "blocks.1.to_v"]])
def test_a_pool_of_the_old_version_loads_into_the_new_one(versions, wake, tmp_path, target):
    old, new = versions
    weave = prw.inject(old(), target=target, **POOL)
    wake(weave)
    weave.save_pretrained(tmp_path)
    expected = weave.model(HIDDEN)
    loaded = PeftModel.from_pretrained(new(), tmp_path).eval()
    assert torch.equal(loaded(HIDDEN), expected)
    model = new()
    again = prw.load(model, tmp_path)
    assert torch.equal(model(HIDDEN), expected)
    assert all(path.startswith("model.language_model.") for site in again.sites for path in site.modules)
    again.add_expert("c")
    prw.load(model, tmp_path)  # an earlier stage, into the larger pool
    again.remove_expert("c")
    again.save_pretrained(tmp_path / "new")
    third = new()
    prw.load(third, tmp_path / "new")
    assert torch.equal(third(HIDDEN), expected)


def test_a_pool_goes_as_far_as_a_lora(versions, tmp_path):
    old, new = versions
    lora = get_peft_model(old(), LoraConfig(target_modules=["to_k"], init_lora_weights=False)).eval()
    lora.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(new(), tmp_path).eval()
    assert torch.equal(loaded(HIDDEN), lora(HIDDEN))


def test_excluded_projections_and_ranks_of_an_imported_expert_move_along(versions, wake, tmp_path):
    old, new = versions
    lora = get_peft_model(
        old(),
        LoraConfig(r=3, rank_pattern={"to_v": 1}, target_modules=["to_k", "to_v"], init_lora_weights=False),
    )
    lora.save_pretrained(tmp_path / "lora")
    weave = prw.inject(old(), exclude=["blocks.1.to_v"], **POOL)
    weave.import_lora(tmp_path / "lora", name="theirs")
    wake(weave)
    weave.save_pretrained(tmp_path / "pool")
    for model in (new(), PeftModel.from_pretrained(new(), tmp_path / "pool").eval()):
        if not isinstance(model, PeftModel):
            prw.load(model, tmp_path / "pool")
        assert torch.equal(model(HIDDEN), weave.model(HIDDEN))


def tiny_llava():
    text = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=39)
    return transformers.LlavaForConditionalGeneration(config).eval()


def test_what_transformers_has_moved_is_found_too(wake, tmp_path):
    """Transformers 4 kept the language model of LLaVA at language_model.model."""
    base = tiny_llava()
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    tokens = torch.randint(0, 39, (2, 6))
    weave = prw.inject(base, target=["*language_model*k_proj", "*language_model*v_proj"], **POOL)
    wake(weave)
    expected = base(input_ids=tokens).logits
    weave.save_pretrained(tmp_path)
    as_before(tmp_path)

    def fresh():
        model = tiny_llava()
        model.load_state_dict(weights)
        return model

    model = fresh()
    prw.load(model, tmp_path)
    assert torch.equal(model(input_ids=tokens).logits, expected)
    loaded = PeftModel.from_pretrained(fresh(), tmp_path).eval()
    assert torch.equal(loaded(input_ids=tokens).logits, expected)
    model = fresh()
    model.load_adapter(str(tmp_path))
    assert torch.allclose(model(input_ids=tokens).logits, expected, atol=1e-6)


def as_before(folder):
    """Give a saved pool the names that the projections had before they moved."""
    old, new = "language_model.layers", "model.language_model.layers"
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    values["target_modules"] = [path.replace(new, old) for path in values["target_modules"]]
    file.write_text(json.dumps(values))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace(new, old): weight for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("paths", [["blocks.9.to_k"], ["far.blocks.0.to_k"]])
def test_a_path_that_has_moved_nowhere_is_refused(versions, tmp_path, paths):
    _, new = versions
    model = new()
    with pytest.raises(prw.TargetError, match="matched nothing"):
        get_peft_model(model, prw.PrwConfig(target_modules=paths, **POOL))
    assert not hasattr(model, "peft_config")
