"""What is frozen stays frozen, bit for bit, whichever route PEFT, transformers or diffusers take."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import prw

CONFIG = {"rank": 2, "experts": ["a", "b"]}
CHILDREN = {"gate1", "noise1", "A1", "B1"}


def train(model, run, steps=3):
    """Some steps of an optimiser that was given everything, as careless training scripts do."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        run().square().mean().backward()
        optimiser.step()
    model.eval()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def only_the_newest(moved, adapter="default"):
    parts = {name.partition(".prw_")[2].removesuffix(f".{adapter}.weight") for name in moved}
    return bool(moved) and parts <= CHILDREN and {"A1", "B1"} <= parts


def disabled_for_a_while(model):
    with model.disable_adapter():
        pass


PEFT_ROUTES = {
    "set_adapter": lambda m: m.set_adapter("default"),
    "tuner.set_adapter": lambda m: m.base_model.set_adapter(["default"]),
    "set_requires_grad": lambda m: m.set_requires_grad("default", True),
    "disable_adapter": disabled_for_a_while,
    "enable_adapter_layers": lambda m: (
        m.base_model.disable_adapter_layers(),
        m.base_model.enable_adapter_layers(),
    ),
    "another pool and back": lambda m: (
        m.add_adapter("other", prw.PrwConfig(**CONFIG)),
        m.set_adapter("other"),
        m.set_adapter("default"),
    ),
}


@pytest.mark.parametrize("route", PEFT_ROUTES)
def test_veterans_survive_what_peft_does(make_plain, wake, route):
    model = get_peft_model(make_plain(), prw.PrwConfig(**CONFIG))
    wake(prw.Weave(model))
    hidden = torch.randn(2, 5, 8)
    PEFT_ROUTES[route](model)
    assert only_the_newest(train(model, lambda: model(hidden)))


@pytest.mark.parametrize("route", PEFT_ROUTES)
def test_a_pool_whose_stage_has_ended_survives_it_too(make_plain, wake, route):
    model = get_peft_model(make_plain(), prw.PrwConfig(**CONFIG))
    weave = prw.Weave(model)
    wake(weave)
    weave.freeze()
    PEFT_ROUTES[route](model)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("adapter", ["default", "renamed"])
def test_veterans_survive_peft_saving_and_loading_to_train_on(make_plain, wake, tmp_path, adapter):
    base = make_plain()
    state = base.state_dict()
    model = get_peft_model(base, prw.PrwConfig(**CONFIG))
    wake(prw.Weave(model))
    model.save_pretrained(tmp_path)
    fresh = make_plain()
    fresh.load_state_dict(state, strict=False)
    again = PeftModel.from_pretrained(fresh, tmp_path, adapter_name=adapter, is_trainable=True)
    hidden = torch.randn(2, 5, 8)
    assert only_the_newest(train(again, lambda: again(hidden)), adapter)
    for_inference = PeftModel.from_pretrained(make_plain(), tmp_path)
    assert not any(p.requires_grad for p in for_inference.parameters())


def test_veterans_survive_loading_a_second_trainable_adapter(make_plain, wake, tmp_path):
    model = get_peft_model(make_plain(), prw.PrwConfig(**CONFIG))
    wake(prw.Weave(model))
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, adapter_name="second", is_trainable=True)
    frozen = {n for n, p in model.named_parameters() if ".prw_" in n and not p.requires_grad}
    assert {n for n in frozen if "default" in n and "0.default" in n}
    model.set_adapter("second")
    hidden = torch.randn(2, 5, 8)
    assert only_the_newest(train(model, lambda: model(hidden)), "second")
    model.set_adapter("default")
    assert only_the_newest(train(model, lambda: model(hidden)))


TRANSFORMERS_ROUTES = {
    "set_adapter": lambda m: m.set_adapter("default"),
    "disable and enable": lambda m: (m.disable_adapters(), m.enable_adapters()),
    "a LoRA and back": lambda m: (
        m.add_adapter(LoraConfig(target_modules=["q_proj"]), adapter_name="other"),
        m.set_adapter("other"),
        m.set_adapter("default"),
    ),
}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("route", TRANSFORMERS_ROUTES)
def test_veterans_survive_what_transformers_does(make_host, wake, route):
    host = make_host("llama")
    host.model.add_adapter(prw.PrwConfig(**CONFIG), adapter_name="default")
    wake(prw.Weave(host.model))
    TRANSFORMERS_ROUTES[route](host.model)
    moved = train(host.model, host)
    assert only_the_newest({name for name in moved if ".prw_" in name})
    if route != "a LoRA and back":
        assert all(".prw_" in name for name in moved)


def test_veterans_survive_transformers_saving_and_loading(make_host, wake, tmp_path):
    host = make_host("llama")
    state = host.model.state_dict()
    host.model.add_adapter(prw.PrwConfig(**CONFIG), adapter_name="default")
    wake(prw.Weave(host.model))
    host.model.save_pretrained(tmp_path)
    again = make_host("llama")
    again.inputs = host.inputs
    again.model.load_state_dict(state)
    again.model.load_adapter(tmp_path, adapter_name="default", is_trainable=True)
    host.model.eval()
    again.model.eval()
    assert torch.equal(host(), again())
    assert len(prw.Weave(again.model).trainable_parameters()) == again.sites * 6
    assert only_the_newest(train(again.model, again))


DIFFUSERS_ROUTES = {
    "set_adapter": lambda m: m.set_adapter("default"),
    "disable and enable": lambda m: (m.disable_adapters(), m.enable_adapters()),
    "weights": lambda m: m.set_adapters("default", 0.5),
    "lora switches": lambda m: (m.disable_lora(), m.enable_lora()),
}


@pytest.mark.parametrize("route", DIFFUSERS_ROUTES)
def test_veterans_survive_what_diffusers_does(make_host, wake, route):
    host = make_host("flux")
    host.model.add_adapter(prw.PrwConfig(**CONFIG), adapter_name="default")
    wake(prw.Weave(host.model))
    DIFFUSERS_ROUTES[route](host.model)
    assert only_the_newest(train(host.model, host))


def test_veterans_survive_prws_own_saving_loading_and_resuming(make_plain, wake, tmp_path):
    base = make_plain()
    weave = prw.inject(base, **CONFIG)
    wake(weave)
    hidden = torch.randn(2, 5, 8)
    optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=0.05, weight_decay=0.1)
    base(hidden).square().mean().backward()
    optimiser.step()
    weave.save_pretrained(tmp_path)
    resumed = optimiser.state_dict()
    weave.eject()
    again = prw.load(base, tmp_path)
    veterans = {n: p.detach().clone() for n, p in base.named_parameters() if "0.default" in n}
    optimiser = torch.optim.AdamW(again.trainable_parameters(), lr=0.05, weight_decay=0.1)
    optimiser.load_state_dict(resumed)
    for _ in range(3):
        optimiser.zero_grad()
        base(hidden).square().mean().backward()
        optimiser.step()
    assert veterans
    assert all(torch.equal(base.get_parameter(name), weight) for name, weight in veterans.items())
