"""A pool is put in and taken out beside other adapters; a failure leaves the model as it was."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

import prw


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("first", ["A", "B"])
def test_two_pools_act_train_and_leave_without_touching_each_other(make_plain, wake, first):
    model, hidden = make_plain().eval(), torch.randn(2, 5, 8)
    model.blocks[0].to_q.requires_grad_(False)
    before, base = flags(model), model(hidden)
    pools = {"A": prw.inject(model, rank=2, experts=["a", "b"], adapter="A")}
    wake(pools["A"])
    with_a = model(hidden)
    pools["B"] = prw.inject(model, target=["to_v"], rank=2, experts=["x", "y"], adapter="B")
    assert torch.equal(model(hidden), with_a), "the first pool acts on"
    wake(pools["B"])
    assert not torch.equal(model(hidden), with_a)
    trains = {name for name, flag in flags(model).items() if flag}
    assert {name.rpartition(".prw_")[2][1:] for name in trains} <= {
        f"{part}1.{adapter}.weight" for adapter in "AB" for part in ("", "ate", "oise")
    }
    other = pools.pop(first)
    other.eject()
    (left,) = pools.values()
    assert {name for name, flag in flags(model).items() if flag} == {
        name for name, p in model.named_parameters() if any(p is q for q in left.trainable_parameters())
    }
    left.add_expert("c")
    assert all(p.requires_grad for p in left.trainable_parameters())
    left.eject()
    assert torch.equal(model(hidden), base)
    assert flags(model) == before


def test_a_users_lora_acts_on_beside_a_pool(make_plain):
    model, hidden = make_plain().eval(), torch.randn(2, 5, 8)
    model.head = torch.nn.Linear(8, 8)
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False, modules_to_save=["head"])
    inject_adapter_in_model(lora, model, "style")
    with torch.no_grad():
        model.head.modules_to_save["style"].weight.zero_()
    before, with_lora, head = flags(model), model(hidden), model.head(hidden)
    weave = prw.inject(model, rank=2, experts=["a"])
    assert torch.equal(model(hidden), with_lora)
    assert torch.equal(model.head(hidden), head)
    assert all(flags(model)[name] == flag for name, flag in before.items() if name in flags(model))
    weave.eject()
    assert flags(model) == before
    assert torch.equal(model.head(hidden), head)


def test_a_failed_injection_leaves_an_earlier_pool_as_it_was(make_plain, wake):
    model, hidden = make_plain().eval(), torch.randn(2, 5, 8)
    pool = prw.inject(model, rank=2, experts=["a"], adapter="A")
    wake(pool)
    before, expected = flags(model), model(hidden)
    with pytest.raises(prw.TargetError):
        prw.inject(model, target=["to_z"], rank=2, adapter="B")
    assert flags(model) == before
    assert torch.equal(model(hidden), expected)
    assert list(model.peft_config) == ["A"]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.filterwarnings("ignore:Adapters that were active before this pool")
def test_an_injection_that_fails_leaves_no_configuration_and_no_layers(make_host, monkeypatch):
    host = make_host("vit")
    host.model.add_adapter(LoraConfig(target_modules=["q_proj"]), adapter_name="lora")
    modules = dict(host.model.named_modules())
    with pytest.raises(prw.TargetError):
        host.model.add_adapter(prw.PrwConfig(target_modules=["nowhere"]), adapter_name="pool")
    made = []
    join = prw.tuner.PrwLinear.join

    def fails_at_the_third(layer, *args, **kwargs):
        made.append(layer)
        if len(made) == 3:
            raise MemoryError
        join(layer, *args, **kwargs)

    monkeypatch.setattr(prw.tuner.PrwLinear, "join", fails_at_the_third)
    with pytest.raises(MemoryError):
        host.model.add_adapter(prw.PrwConfig(experts=["a"]), adapter_name="pool")
    monkeypatch.undo()
    assert list(host.model.peft_config) == ["lora"]
    assert dict(host.model.named_modules()) == modules
    host.model.add_adapter(prw.PrwConfig(experts=["a"]), adapter_name="pool")
    assert prw.Weave(host.model, "pool").experts == ("a",)
