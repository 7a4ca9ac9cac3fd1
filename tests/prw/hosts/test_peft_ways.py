"""Other ways PEFT and transformers have with an adapter: low memory, dtypes, modules beside it, cards."""

from __future__ import annotations

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM

import prw
from tests.prw.hosts.conftest import POOL


@pytest.fixture
def llama(make_host):
    host = make_host("llama")
    host.model.eval()
    return host


@pytest.fixture
def fresh(llama, make_host):
    """A maker of models with the same base weights."""
    base = {name: weight.clone() for name, weight in llama.model.state_dict().items()}

    def make():
        other = make_host("llama").model.eval()
        other.load_state_dict(base)
        return other

    return make


@pytest.fixture
def saved(llama, fresh, wake, tmp_path):
    """A pool saved by PEFT: its folder, its weights and its output."""
    wrapped = get_peft_model(fresh(), prw.PrwConfig(**POOL))
    wake(prw.Weave(wrapped))
    wrapped.eval().save_pretrained(tmp_path / "pool")
    return tmp_path / "pool", experts_of(wrapped), llama.read(wrapped(**llama.inputs))


def experts_of(model):
    return {name.split("layers.")[1]: p for name, p in model.named_parameters() if ".prw_" in name}


def assert_same_experts(model, expected, renamed="default"):
    found = {name.replace(f".{renamed}.", ".default."): p for name, p in experts_of(model).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.is_meta for p in found.values())


@pytest.mark.parametrize("name", ["default", "other"])
def test_low_cpu_mem_usage_loads_the_very_weights(llama, fresh, saved, name):
    folder, experts, expected = saved
    loaded = PeftModel.from_pretrained(fresh(), folder, adapter_name=name, low_cpu_mem_usage=True).eval()
    assert_same_experts(loaded, experts, name)
    # Weights lie in the file's memory, unaligned, so that products are rounded in another order.
    assert torch.allclose(llama.read(loaded(**llama.inputs)), expected, atol=1e-6)
    model = fresh()
    model.load_adapter(str(folder), adapter_name=name, low_cpu_mem_usage=True)
    assert_same_experts(model, experts, name)
    assert model.active_adapters() == [name]


def test_inject_and_set_state_by_hand_are_bit_equal(llama, fresh, saved):
    folder, experts, expected = saved
    state = get_peft_model_state_dict(PeftModel.from_pretrained(fresh(), folder))
    model = inject_adapter_in_model(prw.PrwConfig(**POOL), fresh())
    result = set_peft_model_state_dict(
        model, {k.removeprefix("base_model.model."): v for k, v in state.items()}
    )
    assert not result.unexpected_keys
    assert_same_experts(model, experts)
    assert torch.equal(llama.read(model(**llama.inputs)), expected)


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_experts_are_float32_on_a_bf16_base_unless_asked_otherwise(llama, fresh, saved, autocast, dtype):
    folder, *_ = saved
    new = get_peft_model(fresh().to(torch.bfloat16), prw.PrwConfig(**POOL), autocast_adapter_dtype=autocast)
    loaded = PeftModel.from_pretrained(
        fresh().to(torch.bfloat16), folder, autocast_adapter_dtype=autocast, is_trainable=True
    )
    for model in (new, loaded):
        assert {p.dtype for p in experts_of(model).values()} == {dtype}
        weave = prw.Weave(model)
        weave.add_expert("c")
        assert {p.dtype for p in experts_of(model).values()} == {dtype}, "later ones too"
        assert model(**llama.inputs).logits.dtype == torch.bfloat16
        model(**llama.inputs).logits.float().sum().backward()
        assert all(p.grad.dtype == dtype for p in weave.trainable_parameters())


def test_modules_to_save_are_trained_saved_and_loaded_by_peft(llama, fresh, wake, tmp_path):
    wrapped = get_peft_model(fresh(), prw.PrwConfig(**POOL, modules_to_save=["lm_head"])).eval()
    wake(prw.Weave(wrapped))
    training = {name for name, p in wrapped.named_parameters() if p.requires_grad and "lm_head" in name}
    assert len(training) == 1
    with torch.no_grad():
        wrapped.get_parameter(training.pop()).mul_(2.0)
    expected = llama.read(wrapped(**llama.inputs))
    with wrapped.disable_adapter():
        assert torch.equal(llama.read(wrapped(**llama.inputs)), llama())
    wrapped.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(), tmp_path).eval()
    assert torch.equal(llama.read(loaded(**llama.inputs)), expected)


def test_an_earlier_stage_loads_into_a_larger_pool_by_peft(llama, fresh, saved, wake):
    folder, _, expected = saved
    larger = get_peft_model(fresh(), prw.PrwConfig(rank=4, experts=["a", "b", "c"])).eval()
    wake(prw.Weave(larger))
    result = larger.load_adapter(folder, "default")
    larger.eval()
    assert {key.split(".prw_")[1].split(".")[0] for key in result.missing_keys} == {
        "A2",
        "B2",
        "gate2",
        "noise2",
    }
    with prw.Weave(larger).as_of("b"):
        assert torch.equal(llama.read(larger(**llama.inputs)), expected)


def test_auto_model_reads_an_adapter_folder(llama, wake, tmp_path):
    llama.model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    model.add_adapter(prw.PrwConfig(**POOL), adapter_name="default")
    wake(prw.Weave(model))
    expected = llama.read(model(**llama.inputs))
    model.disable_adapters()
    assert torch.allclose(llama.read(model(**llama.inputs)), llama(), atol=1e-6)
    model.enable_adapters()
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_same_experts(again, experts_of(model))
    assert torch.allclose(llama.read(again(**llama.inputs)), expected, atol=1e-6)


def test_every_way_of_saving_leaves_a_card_that_says_import_prw(llama, fresh, tmp_path):
    weave = prw.inject(fresh(), **POOL)
    weave.save_pretrained(tmp_path / "prw")
    weave.model.save_pretrained(tmp_path / "transformers")
    (tmp_path / "peft").mkdir()
    wrapped = get_peft_model(fresh(), prw.PrwConfig(**POOL))
    wrapped.save_pretrained(tmp_path / "peft")
    get_peft_model(fresh(), prw.PrwConfig(**POOL), adapter_name="mine").save_pretrained(tmp_path / "named")
    for folder in ("prw", "transformers", "peft", "named/mine"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "import prw" in card, folder
        assert "experts, oldest first | a, b" in card, folder
    theirs = (tmp_path / "peft" / "README.md").read_text()
    assert theirs.startswith("---\n"), "the header stays first"
    assert "### Framework versions" in theirs, "and what PEFT wrote is kept"
    wrapped.save_pretrained(tmp_path / "peft")
    again = (tmp_path / "peft" / "README.md").read_text()
    assert again.count("import prw  ") == 1, "saved twice, said once"


def test_a_users_own_card_is_kept(fresh, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n\nHow I made it.\n")
    get_peft_model(fresh(), prw.PrwConfig(**POOL)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "How I made it." in card
    assert "import prw" in card
