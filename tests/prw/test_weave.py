"""The handle on every supported family: identity, growth, recall, freezing, saving, ejecting."""

import copy

import pytest
import torch

import prw


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_an_injected_model_is_bit_equal_to_the_frozen_base(host):
    host.model.requires_grad_(False)
    before = host()
    weave = prw.inject(host.model, target="kv", rank=4)
    assert torch.equal(host(), before)
    weave.add_expert("first")
    assert torch.equal(host(), before)
    weave.add_expert("second")
    assert torch.equal(host(), before)
    assert len(weave.sites) == host.sites
    assert all(len(site.modules) == 2 for site in weave.sites)


@pytest.mark.usefixtures("other_rounding")
def test_injection_is_bit_equal_to_the_frozen_base_where_strided_products_round_differently(make_plain, wake):
    model, hidden = make_plain(), torch.randn(5, 2, 8).transpose(0, 1)
    assert model.training and all(weight.requires_grad for weight in model.parameters())
    trainable = model(hidden)
    frozen = model.requires_grad_(False)(hidden)
    assert not torch.equal(frozen, trainable) and torch.allclose(frozen, trainable, atol=1e-4)
    weave = prw.inject(model.requires_grad_(True), rank=2, experts=["a", "b"])
    assert torch.equal(model(hidden), frozen)
    wake(weave)
    with weave.disabled():
        assert torch.equal(model(hidden), frozen)
    weave.eject()
    assert torch.equal(model(hidden), trainable)


def test_eject_restores_the_very_modules_and_what_trained(host, wake):
    before, modules = host(), dict(host.model.named_modules())
    flags = {name: p.requires_grad for name, p in host.model.named_parameters()}
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    assert not torch.equal(host(), before)
    weave.eject()
    assert torch.equal(host(), before)
    after = dict(host.model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is modules[name] for name in modules)
    assert {name: p.requires_grad for name, p in host.model.named_parameters()} == flags
    with pytest.raises(prw.PoolError, match="ejected"):
        _ = weave.experts
    prw.inject(host.model, rank=4)


def test_disabled_is_the_frozen_base(host, wake):
    host.model.requires_grad_(False)
    before = host()
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    with weave.disabled():
        assert torch.equal(host(), before)
    assert not torch.equal(host(), before)


def test_growth_leaves_veterans_and_their_logits_alone(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    with weave.record() as old:
        host()
    old_weights = snapshot(host.model)
    weave.add_expert("c")
    now = snapshot(host.model)
    assert all(torch.equal(now[name], weight) for name, weight in old_weights.items())
    with weave.record() as new:
        host()
    first = weave.sites[0].name  # later sites read what the new softmax has rescaled
    assert torch.equal(new.decisions[first][0].logits[..., :2], old.decisions[first][0].logits)


def test_as_of_is_the_model_of_that_stage(host, wake, tmp_path):
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    then = host()
    weave.save_pretrained(tmp_path / "stage")
    weave.add_expert("c", init="a")
    weave.add_expert("d")
    optimizer = torch.optim.AdamW(weave.trainable_parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with weave.record() as routing:
            loss = host().square().mean() + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
        loss.backward()
        optimizer.step()
    now = host()
    weave.save_pretrained(tmp_path / "later")
    assert not torch.equal(now, then)
    with weave.as_of("b"):
        assert torch.equal(host(), then)
    weave.eject()
    weave = prw.load(host.model, tmp_path / "later")
    assert torch.equal(host(), now)
    with weave.as_of("b"):
        assert torch.equal(host(), then)
    weave.eject()
    prw.load(host.model, tmp_path / "stage")
    assert torch.equal(host(), then)


def test_frozen_experts_survive_an_optimiser_with_weight_decay(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    weave.add_expert("c", init="b")
    before = snapshot(host.model)
    host.model.train()
    optimizer = torch.optim.AdamW(weave.trainable_parameters(), lr=0.01, weight_decay=0.1)
    everything = torch.optim.AdamW(host.model.parameters(), lr=0.01, weight_decay=0.1)
    for optimiser in (optimizer, everything):
        for _ in range(2):
            optimiser.zero_grad()
            with weave.record() as routing:
                loss = host().square().mean()
            (loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
            optimiser.step()
    moved = {name for name, p in host.model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {id(p) for p in weave.trainable_parameters()}
    assert moved == {name for name, p in host.model.named_parameters() if id(p) in trainable}
    assert moved
    assert all("2.default" in name for name in moved)


def test_only_the_newest_expert_trains_and_freeze_ends_that(host):
    weave = prw.inject(host.model, rank=4)
    with pytest.raises(prw.PoolError, match="add_expert"):
        weave.trainable_parameters()
    for index, name in enumerate(("a", "b")):
        weave.add_expert(name)
        wanted = {n for n, p in host.model.named_parameters() if p.requires_grad}
        assert wanted
        assert all(f"{index}.default" in n for n in wanted)
        assert len(wanted) == len(weave.trainable_parameters()) == host.sites * 6
    weave.freeze()
    assert weave.trainable_parameters() == []
    assert weave.frozen
    assert not any(p.requires_grad for p in host.model.parameters())


def test_a_batch_mate_changes_nothing(make_host, wake):
    for name in ("flux", "llama", "bert", "vit"):
        for granularity in ("token", "sample"):
            if (name, granularity) == ("llama", "sample"):
                continue
            host = make_host(name)
            host.model.eval()
            wake(prw.inject(host.model, rank=4, experts=["a", "b"], granularity=granularity))
            both = host()
            for key, value in host.inputs.items():
                if value.shape[0] == 2:
                    host.inputs[key] = value[1:]
            assert torch.allclose(host(), both[1:], atol=1e-6)


def test_remove_expert_leaves_the_others_what_they_were(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a"])
    wake(weave)
    alone = host()
    weave.add_expert("b", init="a")
    weave.add_expert("c")
    weave.remove_expert("c")
    assert weave.experts == ("a", "b")
    assert weave.trainable_parameters() == []
    weave.add_expert("c")
    weave.remove_expert("b")
    assert weave.experts == ("a", "c")
    assert weave.trainable_parameters()
    assert all("prw_" not in n or "2.default" not in n for n, _ in host.model.named_parameters())
    weave.remove_expert("c")
    assert torch.equal(host(), alone)
    with pytest.raises(prw.PoolError, match="no expert 'c'; it has: a"):
        weave.remove_expert("c")


def test_a_copied_expert_starts_as_its_veteran(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a"])
    wake(weave)
    weave.add_expert("b", init="a")
    weights = dict(host.model.named_parameters())
    for name, weight in weights.items():
        if ".prw_A1." in name or ".prw_B1." in name:
            assert torch.equal(weight, weights[name.replace("prw_A1", "prw_A0").replace("prw_B1", "prw_B0")])
        if ".prw_gate1." in name:
            assert not torch.equal(weight, weights[name.replace("gate1", "gate0")])
    with pytest.raises(prw.PoolError, match="no expert 'z'"):
        weave.add_expert("c", init="z")
    assert weave.experts == ("a", "b")


def test_a_copy_of_the_model_has_its_own_pool(host, wake):
    weave = prw.inject(host.model, rank=4, experts=["a"])
    wake(weave)
    twin = prw.Weave(copy.deepcopy(host.model))
    twin.add_expert("b")
    assert weave.experts == ("a",)
    assert twin.experts == ("a", "b")


def test_an_unknown_setting_or_name_is_refused(host):
    before = host()
    with pytest.raises(prw.ConfigError, match=r"rnak: unknown setting. Did you mean rank"):
        prw.inject(host.model, rnak=4)
    with pytest.raises(prw.ConfigError, match="top_k"):
        prw.inject(host.model, top_k=0)
    with pytest.raises(prw.TargetError, match="matched nothing"):
        prw.inject(host.model, target="to_z")
    assert torch.equal(host(), before)
    assert not hasattr(host.model, "peft_config")
    weave = prw.inject(host.model, rank=4, experts=["a"])
    with pytest.raises(prw.ConfigError, match="already has an expert 'a'"):
        weave.add_expert("a")
    with pytest.raises(prw.PoolError, match="already has an adapter 'default'"):
        prw.inject(host.model, rank=4)


def test_experts_stay_float32_on_a_bf16_base(host):
    host.model.to(torch.bfloat16)
    host.inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in host.inputs.items()}
    before = host()
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    assert {p.dtype for p in weave.trainable_parameters()} == {torch.float32}
    assert torch.equal(host(), before)
    assert host().dtype == torch.bfloat16


def test_a_string_of_experts_is_refused(make_plain):
    model = make_plain()
    with pytest.raises(prw.ConfigError, match=r"list of names, got the string 'ab'.*experts=\['ab'\]"):
        prw.inject(model, experts="ab")
    with pytest.raises(prw.ConfigError, match="list of names"):
        prw.PrwConfig(experts="ab")
    assert not hasattr(model, "peft_config")
    assert prw.inject(model, experts=(name for name in ("a", "b"))).experts == ("a", "b")


@pytest.mark.parametrize("call", [prw.inject, prw.Weave, lambda pipe: prw.load(pipe, "nowhere")])
def test_what_is_no_model_is_told_so(call):
    class Pipeline:
        transformer = None

    with pytest.raises(prw.TargetError, match=r"got a Pipeline\. Of a diffusers pipeline pass the denoiser"):
        call(Pipeline())


@pytest.mark.parametrize("name", ["", "a.b"])
def test_an_adapters_name_is_part_of_a_name(make_plain, name):
    model = make_plain()
    with pytest.raises(prw.PoolError, match="not empty and without a dot"):
        prw.inject(model, rank=2, adapter=name)
    prw.inject(model, rank=2)


def test_arguments_of_another_kind_are_told_in_a_sentence(make_plain):
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    with pytest.raises(prw.ConfigError, match="takes a mask of bools"), weave.route_only([[True]]):
        pass
    with weave.record() as routing:
        weave.model(torch.randn(1, 2, 8))
    with pytest.raises(prw.ConfigError, match="mask takes bools"):
        prw.veteran_loss(routing, rho=1.0, alpha=0.0, mask=[[True, True]])
    with pytest.raises(prw.StorageError, match="got a NoneType"):
        weave.import_lora(None, name="b")
    for stages in (["a"], [None]):
        with pytest.raises(prw.CurriculumError, match="expected a Stage, got"):
            prw.Curriculum(stages)
    stage = prw.Stage("a", rho=1.0, alpha=0.0, steps=1, lr=0.1)
    assert prw.Curriculum(stage).names == ("a",)
