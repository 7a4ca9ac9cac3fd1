"""A plain LoRA on the same projections acts beside the pool, and nobody switches it off in silence."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

import prw

TWO_ADAPTERS = "ignore:Already found a `peft_config` attribute:UserWarning"
pytestmark = pytest.mark.filterwarnings(TWO_ADAPTERS)
LORA = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)


@pytest.mark.parametrize("first", ["lora", "prw"])
def test_the_output_is_base_plus_lora_plus_experts(make_plain, wake, first):
    model = make_plain().eval()
    hidden = torch.randn(2, 5, 8)
    base = model.blocks[0].to_k(hidden)

    def add_lora():
        inject_adapter_in_model(LORA, model, "style")

    if first == "lora":
        add_lora()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    if first == "prw":
        pool_alone = model.blocks[0].to_k(hidden)
        add_lora()
    key = model.blocks[0].to_k
    both = key(hidden)
    with weave.disabled():
        lora_alone = key(hidden)
    if first == "lora":
        for module in model.modules():
            if "lora" in type(module).__module__ and hasattr(module, "enable_adapters"):
                module.enable_adapters(False)
        pool_alone = key(hidden)
    assert not torch.allclose(lora_alone, base, atol=1e-3)
    assert not torch.allclose(pool_alone, base, atol=1e-3)
    assert torch.allclose(both, base + (lora_alone - base) + (pool_alone - base), atol=1e-5)


@pytest.mark.parametrize("first", ["lora", "prw"])
def test_each_trains_and_is_saved_by_itself(make_plain, tmp_path, first):
    model = make_plain().train()
    steps = [
        lambda: inject_adapter_in_model(LORA, model, "style"),
        lambda: prw.inject(model, rank=2, experts=["a", "b"]),
    ]
    for step in steps if first == "lora" else reversed(steps):
        step()
    weave = prw.Weave(model)
    lora = [p for name, p in model.named_parameters() if ".lora_" in name]
    for parameter in lora:
        parameter.requires_grad_(True)
    model(torch.randn(2, 5, 8)).square().sum().backward()
    assert all(p.grad is not None for p in (*lora, *weave.trainable_parameters()))
    weave.save_pretrained(tmp_path)
    again = make_plain()
    assert prw.load(again, tmp_path).experts == ("a", "b")
    assert not any(".lora_" in name for name, _ in again.named_parameters())


def test_prw_inject_leaves_the_lora_of_a_host_on(make_host, wake):
    host = make_host("flux")
    host.model.eval()
    host.model.add_adapter(LORA, "style")
    with_lora = host()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weave = prw.inject(host.model, rank=2, experts=["a"])
    assert torch.equal(host(), with_lora)
    wake(weave)
    assert not torch.equal(host(), with_lora)


def test_diffusers_add_adapter_says_that_it_switches_the_lora_off(make_host):
    host = make_host("flux")
    host.model.eval()
    host.model.add_adapter(LORA, "style")
    with_lora = host()
    with pytest.warns(UserWarning, match=r"\(style\).*set_adapter\(\['style', 'pool'\]\)"):
        host.model.add_adapter(prw.PrwConfig(rank=2, experts=["a"]), "pool")
    assert not torch.equal(host(), with_lora)
    host.model.set_adapter(["style", "pool"])  # what the warning says
    assert torch.equal(host(), with_lora)


def test_transformers_add_adapter_says_so_too(make_host, tmp_path):
    host = make_host("llama")
    host.model.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    lora = LoraConfig(r=2, target_modules=["k_proj", "v_proj"], init_lora_weights=False)
    model.add_adapter(lora, "style")
    with_lora = host.read(model(**host.inputs))
    with pytest.warns(UserWarning, match=r"set_adapter\(\['style', 'pool'\]\)"):
        model.add_adapter(prw.PrwConfig(rank=2, experts=["a"]), "pool")
    model.set_adapter(["style", "pool"])
    assert torch.equal(host.read(model(**host.inputs)), with_lora)


def test_a_lora_on_all_linear_layers_leaves_the_experts_alone(make_plain):
    model = make_plain().eval()
    prw.inject(model, rank=2, experts=["a"])
    experts = {name for name, _ in model.named_parameters() if ".prw_" in name}
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), model, "style")
    assert not [name for name, _ in model.named_parameters() if ".prw_" in name and ".lora_" in name]
    assert len([name for name, _ in model.named_parameters() if ".prw_" in name]) == len(experts)


def test_a_pool_under_a_lora_is_saved_by_the_model_as_any_other(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    model = LlamaForCausalLM(config).eval()
    base = copy.deepcopy(model)
    weave = prw.inject(model, experts=["a", "b"], rank=2, adapter="pool")
    for parameter in weave.trainable_parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.arange(6)[None]
    wanted = model(tokens).logits
    model.add_adapter(LoraConfig(r=2, target_modules=["k_proj", "v_proj"]), "style")
    model.set_adapter("pool")
    model.save_pretrained(tmp_path)
    loaded = prw.load(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded.model(tokens).logits, wanted)
    again = copy.deepcopy(base)
    again.load_adapter(tmp_path)
    assert torch.equal(again.eval()(tokens).logits, wanted)


def test_one_kind_of_adapter_never_overwrites_another(make_plain, tmp_path):
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    weave.save_pretrained(tmp_path / "pool")
    weave.export_lora("a", tmp_path / "lora")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(prw.StorageError, match="holds a PRW adapter, which a LORA adapter would overwrite"):
        weave.export_lora("a", tmp_path / "pool")
    with pytest.raises(prw.StorageError, match="holds a LORA adapter, which a PRW adapter would overwrite"):
        weave.save_pretrained(tmp_path / "lora")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    weave.save_pretrained(tmp_path / "pool")


@pytest.mark.parametrize("first", ["lora", "prw"])
def test_a_lora_beside_a_pool_is_saved_for_stock_transformers(tmp_path, first):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    model = LlamaForCausalLM(config).eval()
    base, tokens = copy.deepcopy(model), torch.arange(6)[None]
    lora = LoraConfig(r=2, target_modules=["k_proj", "v_proj"], init_lora_weights=False)
    steps = [
        lambda: model.add_adapter(lora, "style"),
        lambda: prw.inject(model, rank=2, experts=["a"], adapter="pool"),
    ]
    for step in steps if first == "lora" else reversed(steps):
        step()
    model.set_adapter("style")
    wanted = model(tokens).logits
    model.save_pretrained(tmp_path)
    stock = copy.deepcopy(base)
    stock.load_adapter(tmp_path)
    assert torch.allclose(stock.eval()(tokens).logits, wanted, atol=1e-6)
    assert not torch.allclose(base(tokens).logits, wanted, atol=1e-3)
    prw.Weave(model, "pool").eject()
    assert torch.allclose(model(tokens).logits, wanted, atol=1e-6)


def test_a_lora_inside_which_a_pool_was_put_is_saved_for_stock_diffusers(tmp_path):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )
    base = copy.deepcopy(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False), "style")
    prw.inject(model, rank=2, experts=["a"], adapter="pool")
    model.save_lora_adapter(tmp_path, "style")
    base.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    ours = {name: weight for name, weight in model.state_dict().items() if ".lora_" in name}
    theirs = {name: weight for name, weight in base.state_dict().items() if ".lora_" in name}
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(ours[name.replace("default_0", "style")], theirs[name]) for name in theirs)


def test_a_lora_is_not_loaded_under_a_pools_name_through_an_outer_peft_model(make_plain, tmp_path):
    lora = get_peft_model(make_plain(), LORA, adapter_name="default")
    lora.save_pretrained(tmp_path)
    model = get_peft_model(make_plain(), LORA, adapter_name="style")
    weave = prw.inject(model.base_model.model, rank=2, experts=["a"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(prw.PoolError, match=r"'default' is a pool's.*adapter_name='style'"):
        model.load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match="'default' already exists"):
        model.add_adapter("default", LORA)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert weave.experts == ("a",)
    model.load_adapter(tmp_path, "other")
    assert "other" in model.peft_config
