"""A caller's configuration is the caller's: every adapter owns a copy, resolved for its own model."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import ViTModel

import prw

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

WAYS = {
    "get_peft_model": lambda model, config: get_peft_model(model, config),
    "inject_adapter_in_model": lambda model, config: inject_adapter_in_model(config, model),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_configuration_serves_models_of_every_depth(make_plain, way):
    config = prw.PrwConfig(rank=2, experts=["a"], rank_pattern={"to_v": 1})
    before = copy.deepcopy(config)
    sites = [len(prw.Weave(WAYS[way](make_plain(blocks=depth), config)).sites) for depth in (2, 4, 3)]
    assert sites == [2, 4, 3]
    assert config == before


@pytest.mark.parametrize("way", WAYS)
def test_growing_one_pool_leaves_the_other_and_what_it_saves_alone(make_plain, wake, way, tmp_path):
    config = prw.PrwConfig(rank=2, experts=["a"])
    first, second = (prw.Weave(WAYS[way](make_plain(), config)) for _ in range(2))
    first.add_expert("b")
    first.config.rank_pattern = {"to_v": 1}
    first.model.train()(torch.randn(1, 3, 8))
    assert (config.experts, second.experts, second.config.experts) == (["a"], ("a",), ["a"])
    assert second.config.rank_pattern is None
    wake(second)
    second.save_pretrained(tmp_path)
    assert prw.load(make_plain(), tmp_path).experts == ("a",)


def test_add_adapter_of_transformers_and_diffusers_leave_it_alone(make_host):
    config = prw.PrwConfig(rank=2, experts=["a"])
    for name in ("vit", "flux", "vit"):
        host = make_host(name)
        host.model.add_adapter(config, adapter_name="default")
        assert len(prw.Weave(host.model).sites) == host.sites
    assert (config.target_modules, config.experts) == ("kv", ["a"])
    assert isinstance(make_host("vit").model, ViTModel)


def test_the_reference_adapter_of_a_preference_trainer_is_a_pool_of_its_own(make_host, wake, tmp_path):
    """As TRL makes one: the same configuration under a second name, and the weights copied by their names."""
    host = make_host("llama")
    model = get_peft_model(host.model, prw.PrwConfig(rank=2, experts=["a", "b"])).eval()
    wake(prw.Weave(model))
    model.add_adapter("ref", model.peft_config["default"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).copy_(parameter)
    before = host.read(model(**host.inputs))
    prw.Weave(model).add_expert("c")
    with torch.no_grad():
        for parameter in prw.Weave(model).trainable_parameters():
            parameter.fill_(0.1)
    assert prw.Weave(model, "ref").experts == ("a", "b")
    assert model.peft_config["ref"].experts == ["a", "b"]
    assert not torch.equal(host.read(model(**host.inputs)), before)
    model.set_adapter("ref")
    assert torch.equal(host.read(model(**host.inputs)), before)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path / "ref", "again")
    model.eval().set_adapter("again")
    assert torch.equal(host.read(model(**host.inputs)), before)


def test_a_list_that_was_handed_in_is_not_shared(make_plain):
    experts, targets = ["a"], ["to_k", "to_v"]
    config = prw.PrwConfig(rank=2, experts=experts, target_modules=targets)
    prw.Weave(get_peft_model(make_plain(), config)).add_expert("b")
    assert (experts, targets) == (["a"], ["to_k", "to_v"])


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
