"""Folded experts: equal to routed ones, the base untouched, and anything else goes the usual way."""

import pytest
import torch

import prw

CONSTANT = {
    "one expert": ({"experts": ["a"]}, None),
    "as of the first": ({"experts": ["a", "b"]}, "a"),
    "every expert always": ({"experts": ["a", "b", "c"], "gate": "unit", "top_k": 3}, None),
    "samples": ({"experts": ["a"], "granularity": "sample"}, None),
    "ranks of their own": (
        {"experts": ["a"], "rank_pattern": {"to_v": 3}, "alpha_pattern": {"to_k": 3.0}},
        None,
    ),
}


@pytest.fixture
def woven(make_plain, wake):
    """A stack of attentions with a pool that is heard."""

    def weave(**settings):
        made = prw.inject(make_plain().eval(), **({"rank": 4} | settings))
        wake(made)
        return made

    return weave


@pytest.mark.parametrize(("settings", "stage"), CONSTANT.values(), ids=CONSTANT)
@torch.no_grad()
def test_folded_equals_routed_and_the_base_is_untouched(woven, settings, stage):
    weave, hidden = woven(**settings), torch.randn(3, 5, 8)
    model, kept = weave.model, {name: value.clone() for name, value in weave.model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    with weave.as_of(stage) if stage else weave.as_of(weave.experts[-1]):
        routed = model(hidden)
        with weave.folded():
            folded = model(hidden)
            assert model.state_dict().keys() == kept.keys()  # a checkpoint written here is as any other
        again = model(hidden)
    assert torch.allclose(folded, routed, atol=1e-5) and not torch.equal(folded, routed)
    assert torch.equal(again, routed)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == modules
    with weave.disabled():
        assert not torch.allclose(model(hidden), routed, atol=1e-3)  # the experts are heard


@torch.no_grad()
def test_tokens_that_are_not_routed_get_the_base_to_the_bit(woven):
    weave, hidden = woven(experts=["a"]), torch.randn(2, 5, 8)
    key = weave.model.get_submodule(weave.sites[0].modules[0])
    base = key.base_layer(hidden)
    with weave.folded():
        assert torch.equal(prw.project(key, hidden, routed=False), base)
        assert not torch.allclose(prw.project(key, hidden), base, atol=1e-3)
        assert torch.equal(key.base_layer(hidden), base)


def test_what_a_folded_weight_would_not_be_right_for_goes_the_usual_way(woven):
    weave, hidden = woven(experts=["a", "b"], gate="unit", top_k=2), torch.randn(2, 5, 8)
    model = weave.model
    with torch.no_grad():
        usual = model(hidden)
        with weave.as_of("a"):
            early = model(hidden)
        with weave.disabled():
            base = model(hidden)
        mask = torch.tensor([[True, False, True, False, False]] * 2)
        with weave.route_only(mask):
            masked = model(hidden)
    with weave.folded():
        with torch.no_grad():
            with weave.as_of("a"):
                assert torch.equal(model(hidden), early)
            with weave.disabled():
                assert torch.equal(model(hidden), base)
            with weave.route_only(mask):
                assert torch.equal(model(hidden), masked)
            with weave.record() as routing:
                assert torch.equal(model(hidden), usual)
            assert routing.usage().sum() > 0
            layers = [m for m in model.modules() if isinstance(m, prw.tuner.PrwLinear)]
            for layer in layers:
                layer.set_scale("default", 0.0)
            assert torch.allclose(model(hidden), base, atol=1e-6)
            for layer in layers:
                layer.set_scale("default", 1.0)
        model(hidden).sum().backward()
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())


@torch.no_grad()
def test_a_folded_weight_moves_with_the_model(woven):
    weave, hidden = woven(experts=["a"]), torch.randn(2, 5, 8)
    with weave.folded():
        twice = weave.model.double()(hidden.double())
    assert torch.allclose(twice, weave.model(hidden.double()), atol=1e-5)


REFUSALS = {
    "a router": (
        {"experts": ["a", "b"]},
        lambda weave: None,
        prw.UnsupportedError,
        r"weighs 2 of them \(prob",
    ),
    "no experts": ({}, lambda weave: None, prw.PoolError, "no experts to fold"),
    "16 bits": (
        {"experts": ["a"]},
        lambda weave: weave.model.to(torch.bfloat16),
        prw.UnsupportedError,
        "would round the experts' part away",
    ),
    "hooks": (
        {"experts": ["a"]},
        lambda weave: weave.model.get_submodule(weave.sites[0].modules[0]).base_layer.register_forward_hook(
            lambda *_: None
        ),
        prw.UnsupportedError,
        "has hooks on its base",
    ),
}


@pytest.mark.parametrize(("settings", "spoil", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_folded_is_refused(woven, settings, spoil, kind, message):
    weave = woven(**settings)
    spoil(weave)
    with pytest.raises(kind, match=message), weave.folded():
        pytest.fail("it was folded")


def test_it_is_folded_once(woven):
    weave = woven(experts=["a"])
    with weave.folded(), pytest.raises(prw.PoolError, match="folded already"), weave.folded():
        pytest.fail("it was folded twice")
    with weave.folded():  # and the refusal left nothing behind
        pass
