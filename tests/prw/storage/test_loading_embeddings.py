"""Embeddings that were resized: PEFT saves them with the pool, and they come back or say what comes first."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import prw
from tests.other_rounding import aligned

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


@pytest.fixture
def base(tmp_path):
    """A folder of a base with 40 tokens; PEFT compares a model's vocabulary with what is there."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=False, **TINY)).save_pretrained(
        tmp_path / "b"
    )
    return tmp_path / "b"


def sized(base, rows):
    model = aligned(LlamaForCausalLM.from_pretrained(base).eval())
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@pytest.fixture
def saved(base, tmp_path, wake):
    """A folder of a pool of a model with 48 tokens, and that model."""
    model = get_peft_model(sized(base, 48), prw.PrwConfig(rank=2, experts=["a", "b"])).eval()
    wake(prw.Weave(model))
    model.save_pretrained(tmp_path / "pool")
    return tmp_path / "pool", model


def test_they_come_back_with_the_pool(base, saved):
    folder, model = saved
    tokens = torch.tensor([[1, 45, 7, 47]])
    again = sized(base, 48)
    assert not torch.equal(again.lm_head.weight, model.base_model.model.lm_head.weight), "new rows are random"
    weave = prw.load(again, folder)
    assert weave.experts == ("a", "b")
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_a_model_of_another_size_is_told_to_resize_and_left_alone(base, saved):
    model = sized(base, 40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(prw.StorageError, match=r"\(48, 16\) there .*resize_token_embeddings\(48\)"):
        prw.load(model, saved[0])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_earlier_stage_goes_into_a_larger_pool_without_them(base, saved):
    model = sized(base, 48)
    weave = prw.load(model, saved[0])
    weave.add_expert("c")
    head = model.lm_head.weight.clone()
    assert prw.load(model, saved[0]).experts == ("a", "b", "c")
    assert torch.equal(model.lm_head.weight, head)


def test_a_larger_pool_keeps_its_own_embeddings_and_says_that_the_folders_differ(base, saved):
    model = sized(base, 48)
    weave = prw.load(model, saved[0])
    weave.add_expert("c")
    with torch.no_grad():
        model.lm_head.weight[40:] += 1
    head = model.lm_head.weight.clone()
    with pytest.warns(
        UserWarning, match=r"embeddings .*\(lm_head\.weight\).* differ .*keeps its own"
    ) as told:
        prw.load(model, saved[0])
    assert told[0].filename == __file__
    assert torch.equal(model.lm_head.weight, head)


def test_tied_embeddings_come_back_too(tmp_path, wake):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=True, **TINY)).save_pretrained(
        tmp_path / "tied"
    )
    model = get_peft_model(sized(tmp_path / "tied", 48), prw.PrwConfig(rank=2, experts=["a"])).eval()
    wake(prw.Weave(model))
    model.save_pretrained(tmp_path / "pool")
    again, tokens = sized(tmp_path / "tied", 48), torch.tensor([[1, 45, 7, 47]])
    prw.load(again, tmp_path / "pool")
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("stray", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_no_other_weight_of_the_base_is_written_from_a_folder(base, saved, stray):
    file = saved[0] / "adapter_model.safetensors"
    model = sized(base, 48)
    weights = load_file(file)
    save_file({**weights, f"base_model.model.{stray}": model.get_parameter(stray) + 1}, file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(prw.StorageError, match=f"1 have no place .*{stray}"):
        prw.load(model, saved[0])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not hasattr(model, "peft_config")


def test_no_other_weight_is_dropped_on_the_way_into_a_larger_pool(base, saved):
    model = sized(base, 48)
    prw.load(model, saved[0]).add_expert("c")
    file, stray = saved[0] / "adapter_model.safetensors", "model.norm.weight"
    save_file({**load_file(file), f"base_model.model.{stray}": model.get_parameter(stray) + 1}, file)
    with pytest.raises(prw.StorageError, match=f"1 have no place .*{stray}"):
        prw.load(model, saved[0])


def test_a_pool_stays_whole_when_its_base_is_resized(base, tmp_path, wake):
    model = sized(base, 40)
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    tokens = torch.tensor([[1, 5, 7, 9]])
    before = model(tokens).logits
    model.resize_token_embeddings(48)
    assert torch.equal(model(tokens).logits[..., :40], before)
    assert all("prw_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    weave.save_pretrained(tmp_path / "pool")
    again = sized(base, 40)
    prw.load(again, tmp_path / "pool")
    assert torch.equal(again(tokens).logits, before)


@pytest.mark.parametrize("replace", ["resize", "assign"])
def test_eject_lets_parameters_train_again_that_have_taken_the_place_of_others(base, replace):
    model = sized(base, 40)
    model.model.norm.requires_grad_(False)
    weave = prw.inject(model, rank=2)
    if replace == "resize":
        model.resize_token_embeddings(48)
    else:
        model.load_state_dict(
            {name: value.clone() for name, value in model.state_dict().items()}, assign=True
        )
    weave.eject()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.norm.weight"]


def test_they_come_back_under_a_lora_on_the_embeddings_too(base, saved):
    again = sized(base, 48)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_tokens"]), again, "style")
    prw.load(again, saved[0])
    tokens = torch.tensor([[1, 45, 7, 47]])
    assert torch.equal(again(tokens).logits, saved[1](tokens).logits), "that LoRA starts at zero"


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify",
    "ignore:Already found a `peft_config`",
    "ignore:Adapters that were active",
)
def test_what_was_saved_under_a_lora_on_the_embeddings_comes_back(base, tmp_path, wake):
    model = sized(base, 48)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_tokens"]), model, "style")
    model = get_peft_model(model, prw.PrwConfig(rank=2, experts=["a"]), adapter_name="pool").eval()
    wake(prw.Weave(model, "pool"))
    model.save_pretrained(tmp_path / "p", selected_adapters=["pool"], save_embedding_layers=True)
    again = sized(base, 48)
    prw.load(again, tmp_path / "p" / "pool")
    tokens = torch.tensor([[1, 45, 7, 47]])
    assert torch.equal(again(tokens).logits, model(tokens).logits)
