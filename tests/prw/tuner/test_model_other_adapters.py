"""A pool and other adapters of a model never share a name, and each knows of the other."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

import prw

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

WAYS = {
    "get_peft_model": lambda model, config: get_peft_model(model, config),
    "inject_adapter_in_model": lambda model, config: inject_adapter_in_model(config, model),
}


@pytest.mark.parametrize("how", ["get_peft_model", "inject_adapter_in_model"])
def test_a_lora_does_not_take_the_name_of_a_pool(make_plain, wake, tmp_path, how):
    model, hidden = make_plain().eval(), torch.randn(2, 3, 8)
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    expected = model(hidden)
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    with pytest.warns(UserWarning), pytest.raises(prw.PoolError, match="'default', which a pool"):
        WAYS[how](model, lora)
    assert torch.equal(model(hidden), expected)
    weave.save_pretrained(tmp_path)
    assert prw.load(make_plain(), tmp_path).experts == ("a", "b")
    with pytest.warns(UserWarning, match="Already found"):
        inject_adapter_in_model(lora, model, "lora")
    assert weave.experts == ("a", "b")


BESIDE_A_LORA = {
    "prw.inject": lambda model: prw.inject(model, rank=2, experts=["a"], adapter="pool"),
    "inject_adapter_in_model": lambda model: inject_adapter_in_model(
        prw.PrwConfig(rank=2, experts=["a"]), model, "pool"
    ),
}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.filterwarnings("ignore:Adapters that were active before this pool")
@pytest.mark.parametrize("how", BESIDE_A_LORA)
@pytest.mark.parametrize("others", [1, 2])
def test_nor_where_another_lora_came_before_the_pool(make_plain, how, others):
    model, lora = make_plain(), LoraConfig(r=2, target_modules=["to_q"])
    for index in range(others):
        inject_adapter_in_model(lora, model, f"lora{index}")
    BESIDE_A_LORA[how](model)
    with pytest.raises(prw.PoolError, match="'pool', which a pool"):
        inject_adapter_in_model(lora, model, "pool")
    assert prw.Weave(model, "pool").experts == ("a",)
    inject_adapter_in_model(lora, model, "another")
    assert list(model.peft_config) == [*(f"lora{index}" for index in range(others)), "pool", "another"]
    prw.Weave(model, "pool").eject()
    inject_adapter_in_model(lora, model, "pool")
    assert isinstance(model.peft_config["pool"], LoraConfig)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("copied", [False, True])
def test_a_peft_model_around_knows_of_the_pool_until_it_is_taken_out(make_plain, copied):
    outer = get_peft_model(make_plain(), LoraConfig(r=2, target_modules=["to_q"]))
    prw.inject(outer.base_model.model, rank=2, experts=["a"], adapter="pool")
    outer = copy.deepcopy(outer) if copied else outer
    weave = prw.Weave(outer.base_model.model, "pool")
    assert list(outer.peft_config) == list(weave.model.peft_config) == ["default", "pool"]
    assert outer.peft_config["pool"] is weave.config
    weave.eject()
    assert list(outer.peft_config) == list(weave.model.peft_config) == ["default"]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.filterwarnings("ignore:Adapters that were active before this pool")
def test_nor_in_a_host_that_had_a_lora_and_a_second_pool(make_host):
    model = make_host("vit").model
    model.add_adapter(LoraConfig(target_modules=["q_proj"]), adapter_name="lora")
    for name in ("one", "two"):
        model.add_adapter(prw.PrwConfig(experts=["a"]), adapter_name=name)
    for name in ("one", "two"):
        with pytest.raises((prw.PoolError, ValueError), match=name):
            model.add_adapter(LoraConfig(target_modules=["q_proj"]), adapter_name=name)
        with pytest.raises(prw.PoolError, match=name):
            inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model, name)
        assert prw.Weave(model, name).experts == ("a",)


@pytest.mark.filterwarnings("ignore:You are trying to modify")
def test_a_pool_does_not_take_the_name_of_a_lora(make_plain):
    model = get_peft_model(make_plain(), LoraConfig(target_modules=["to_k"])).base_model.model
    for call in (
        lambda: inject_adapter_in_model(prw.PrwConfig(rank=2), model),
        lambda: get_peft_model(model, prw.PrwConfig(rank=2)),
        lambda: prw.inject(model, rank=2),
    ):
        with pytest.raises(prw.PoolError, match="already has an adapter 'default'"):
            call()
    assert isinstance(model.peft_config["default"], LoraConfig)
    assert not isinstance(model, PeftModel)
