"""What PEFT's own suite asks of every method, asked of PRW: save, load, train, switch, delete, unload, move.

On a plain attention stack, on fused projections and on transformers' models, with whole layers as well.
"""

from __future__ import annotations

import copy

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.helpers import check_if_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import prw
from tests.prw.conftest import Plain, bert, llama, vit

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def plain():
    model = Plain()
    return model, {"hidden": torch.randn(2, 5, 8)}


def gpt2():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=32))
    return model, {"input_ids": torch.randint(0, 40, (2, 7))}


def host(make):
    made = make()
    return made.model, made.inputs


MODELS = {
    "plain": plain,
    "gpt2": gpt2,
    "llama": lambda: host(llama),
    "bert": lambda: host(bert),
    "vit": lambda: host(vit),
}
OPTIONS = {
    "kv": {},
    "all-linear": {"target_modules": "all-linear"},
    "patterns": {"rank_pattern": {".*v.*|c_attn": 1}, "alpha_pattern": {".*k.*|c_attn": 3.0}},
    "sample, unit": {"gate": "unit", "top_k": 2, "router_norm": True},
}
CASES = [(name, option) for name in MODELS for option in OPTIONS]


class Case:
    """A model's maker with fixed weights, inputs, and a configuration."""

    def __init__(self, name, option):
        model, self.inputs = MODELS[name]()
        self.base = model.eval()
        self.options = {"rank": 2, "experts": ["a", "b"], **OPTIONS[option]}

    def config(self, **more):
        return prw.PrwConfig(**{**self.options, **more})

    def model(self):
        return copy.deepcopy(self.base)

    def wrapped(self, **more):
        return get_peft_model(self.model(), self.config(**more)).eval()

    def run(self, model):
        output = model(**self.inputs)
        return output if isinstance(output, torch.Tensor) else output[0]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    return Case(*request.param)


def pool_parameters(model, adapter="default"):
    return {name: p for name, p in model.named_parameters() if ".prw_" in name and f".{adapter}." in name}


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_saved_weights_and_configuration_come_back_in_every_form(case, wake, tmp_path):
    model = case.wrapped()
    wake(prw.Weave(model))
    expected = case.run(model)
    model.save_pretrained(tmp_path)
    assert check_if_peft_model(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == get_peft_model_state_dict(model).keys()
    assert len(saved) == len(pool_parameters(model)), "the pool and nothing but the pool"
    config = PeftConfig.from_pretrained(tmp_path)
    assert (config.rank, config.experts, config.inference_mode) == (2, ["a", "b"], True)
    for adapter in ("default", "prw", "a"):
        loaded = PeftModel.from_pretrained(case.model(), tmp_path, adapter_name=adapter)
        assert torch.equal(case.run(loaded), expected)
        assert not trainable(loaded)
        assert not loaded.training
    further = PeftModel.from_pretrained(case.model(), tmp_path, is_trainable=True)
    assert trainable(further) == trainable(model)
    by_hand = get_peft_model(case.model(), config).eval()
    result = set_peft_model_state_dict(by_hand, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(case.run(by_hand), expected)


def test_only_the_newest_expert_is_updated_by_training(case, wake):
    model = case.wrapped()
    weave = prw.Weave(model)
    wake(weave)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    with weave.record() as routing:
        output = model(**case.inputs)
        outputs = [output] if isinstance(output, torch.Tensor) else list(output.values())
        loss = sum(each.square().mean() for each in outputs if isinstance(each, torch.Tensor))
        loss = loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
    optimiser.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trainable(model)
    kinds = {name.split(".prw_")[1].split(".")[0] for name in changed}
    assert all(kind.endswith("1") for kind in kinds), kinds


def test_switching_disabling_and_deleting_leave_the_rest_as_it_was(case, wake):
    base = case.run(case.base)
    model = case.wrapped()
    assert torch.allclose(case.run(model), base, atol=1e-6)
    model.add_adapter("second", case.config(experts=["x", "y", "z"]))
    for adapter in ("default", "second"):
        wake(prw.Weave(model, adapter))
    outputs = {}
    for adapter in ("default", "second", "default"):
        model.set_adapter(adapter)
        output = case.run(model)
        assert torch.equal(outputs.setdefault(adapter, output), output)
        assert model.active_adapters == [adapter]
        assert all(f".{adapter}." in name for name in trainable(model))
    with model.disable_adapter():
        assert torch.allclose(case.run(model), base, atol=1e-6)
    assert torch.equal(case.run(model), outputs["default"])
    with pytest.raises(ValueError, match="unknown"):
        model.delete_adapter("unknown")
    model.delete_adapter("second")
    assert torch.equal(case.run(model), outputs["default"])
    assert not pool_parameters(model, "second")
    assert "second" not in model.peft_config
    unloaded = model.unload()
    assert torch.allclose(case.run(unloaded), base, atol=1e-6)
    assert unloaded.state_dict().keys() == case.base.state_dict().keys()


def test_deleting_the_active_adapter_leaves_another_one(case, wake):
    model = case.wrapped()
    model.add_adapter("second", case.config(experts=["x"]))
    wake(prw.Weave(model, "second"))
    model.set_adapter("second")
    second = case.run(model)
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("default")
    assert torch.equal(case.run(model), second)
    model.delete_adapter("second")
    assert not any(hasattr(module, "sites") and module.sites for module in model.modules())
    assert torch.allclose(case.run(model.base_model.model), case.run(case.base), atol=1e-6)


def test_chosen_adapters_are_saved_each_into_its_folder(case, wake, tmp_path):
    model = case.wrapped()
    model.add_adapter("second", case.config(experts=["x"]))
    wake(prw.Weave(model, "second"))
    model.set_adapter("second")
    expected = case.run(model)
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "second"]
    loaded = PeftModel.from_pretrained(case.model(), tmp_path / "second").eval()
    assert torch.equal(case.run(loaded), expected)
    loaded.load_adapter(tmp_path / "second", "third")
    loaded.set_adapter("third")
    assert torch.equal(case.run(loaded), expected)


@pytest.mark.parametrize("adapter", ["prw_A0", "0", "to_k", "weight"])
def test_any_adapter_name_will_do(wake, tmp_path, adapter):
    case = Case("plain", "kv")
    model = get_peft_model(case.model(), case.config(), adapter_name=adapter).eval()
    wake(prw.Weave(model, adapter))
    expected = case.run(model)
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(case.model(), tmp_path / adapter, adapter_name="default").eval()
    assert torch.equal(case.run(other), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_base_of_any_dtype_gives_its_dtype_and_saves_its_pool(wake, tmp_path, dtype, autocast, name):
    case = Case(name, "all-linear")
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in case.inputs.items()}
    case.inputs = inputs
    model = get_peft_model(case.model().to(dtype), case.config(), autocast_adapter_dtype=autocast).eval()
    wake(prw.Weave(model))
    output = case.run(model)
    assert output.dtype == dtype
    assert output.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        case.model().to(dtype), tmp_path, autocast_adapter_dtype=autocast
    ).eval()
    assert torch.equal(case.run(loaded), output)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_gradient_checkpointing_of_the_host_gives_the_same_gradients(wake, name, reentrant):
    case, gradients = Case(name, "kv"), []
    base = case.wrapped()
    wake(prw.Weave(base))
    for checkpointing in (False, True):
        model = copy.deepcopy(base)
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            model.get_base_model().enable_input_require_grads()
        for module in model.modules():
            module.training = not isinstance(module, nn.Dropout)
        torch.manual_seed(0)
        case.run(model).square().mean().backward()
        gradients.append([p.grad for p in prw.Weave(model).trainable_parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_layer_indexing_takes_fewer_parameters_and_comes_back(case, wake, tmp_path):
    every, some = case.wrapped(), case.wrapped(layers_to_transform=[0])
    assert 0 < len(pool_parameters(some)) < len(pool_parameters(every))
    wake(prw.Weave(some))
    some.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model(), tmp_path).eval()
    assert torch.equal(case.run(loaded), case.run(some))
    assert pool_parameters(loaded).keys() == pool_parameters(some).keys()


def test_the_base_of_a_peft_model_saves_as_itself(case, wake):
    model = case.wrapped()
    wake(prw.Weave(model))
    state = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.state_dict().items()
        if ".prw_" not in name
    }
    assert state.keys() == case.base.state_dict().keys()
    assert all(torch.equal(weight, state[name]) for name, weight in case.base.state_dict().items())


def test_a_device_map_of_accelerate_goes_on_with_the_pool(wake, tmp_path):
    from accelerate import dispatch_model

    case = Case("llama", "kv")
    model = case.wrapped()
    wake(prw.Weave(model))
    model.save_pretrained(tmp_path)
    mapped = dispatch_model(case.model(), {"": "cpu"}, force_hooks=True)
    mapped.hf_device_map = {"": "cpu:0"}
    loaded = PeftModel.from_pretrained(mapped, tmp_path).eval()
    assert torch.equal(case.run(loaded), case.run(model))


def test_modules_to_save_beside_whole_layers(wake, tmp_path):
    case = Case("llama", "all-linear")
    model = case.wrapped(modules_to_save=["lm_head", "norm"])
    wake(prw.Weave(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    expected = case.run(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(case.run(PeftModel.from_pretrained(case.model(), tmp_path).eval()), expected)
    assert not any("norm" in site.name for site in prw.Weave(model).sites)


def test_attributes_of_the_base_are_shown(case):
    model = case.wrapped()
    layer = next(module for module in model.modules() if hasattr(module, "sites"))
    assert layer.in_features > 0
    assert layer.out_features > 0
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    assert isinstance(model.get_base_model(), type(case.base))
    assert isinstance(layer.base_layer, nn.Module)
