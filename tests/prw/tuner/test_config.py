"""A caller's configuration is the caller's: every adapter owns a copy, resolved for its own model."""

import copy

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
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
