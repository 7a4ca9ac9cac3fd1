"""Folded experts of a call: the same pictures where routing is constant, refused where it is not."""

import pytest
import torch

import prw

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])
BASE = {"num_inference_steps": 3}


@both_timesteps
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("family", ["flux1", "klein"])
def test_folded_draws_the_same(made, tools, photo, timestep, granularity, family) -> None:
    pipe = made(family, pool={"granularity": granularity})
    asked = {**BASE, "as_of": "inpainting", "source_timestep": timestep}
    pictures = [[photo, tools.picture(1, 32, 64)]]
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    usual = tools.draw(pipe, "a", pictures, **asked)
    folded = tools.draw(pipe, "a", pictures, fold_experts=True, **asked)
    assert 0 < tools.difference(usual, folded) < 1e-5
    after = pipe.transformer.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in after)
    assert tools.difference(usual, tools.draw(pipe, "a", pictures, **asked)) == 0


def test_folded_experts_are_not_routed_and_looking_unfolds_them(build, tools, photo, monkeypatch) -> None:
    pipe = build(pool={"experts": ["only"]})
    calls = []
    experts = prw.tuner.PrwLinear.with_experts
    monkeypatch.setattr(
        prw.tuner.PrwLinear, "with_experts", lambda *args, **kw: calls.append(1) or experts(*args, **kw)
    )
    usual = tools.draw(pipe, "a", photo)
    assert calls
    calls.clear()
    tools.draw(pipe, "a", photo, fold_experts=True)
    assert not calls
    looked = tools.draw(pipe, "a", photo, fold_experts=True, output_routing=True)
    assert calls and tools.difference(usual, looked) == 0 and looked.routing.share("only") == 1.0
    guided = {"negative_prompt": "blue square", "true_cfg_scale": 2.0, "strength": 0.5, **BASE}
    both = [tools.draw(pipe, "a", photo, fold_experts=fold, **guided) for fold in (False, True)]
    assert tools.difference(*both) < 1e-5
    scaled = {"joint_attention_kwargs": {"scale": 0.5}}
    both = [tools.draw(pipe, "a", photo, fold_experts=fold, **scaled) for fold in (False, True)]
    assert tools.difference(*both) == 0 and tools.difference(both[0], usual) > 1e-5  # another strength


def test_what_varies_or_is_not_there_is_refused(build, tools, photo) -> None:
    pipe = build()
    before = tools.draw(pipe, "a", photo)
    with pytest.raises(prw.UnsupportedError, match=r"weighs 2 of them .*weave\.as_of\('inpainting'\)"):
        tools.draw(pipe, "a", photo, fold_experts=True)
    with pytest.raises(prw.UnsupportedError, match="weighs 2 of them"):
        tools.draw(build(pool={"granularity": "sample"}), "a", photo, fold_experts=True)
    with pytest.raises(prw.PoolError, match="there is no image; leave it out"):
        tools.draw(pipe, "a", fold_experts=True)
    with pytest.raises(prw.PoolError, match="there is no pool; leave it out"):
        tools.draw(build(experts=False), "a", photo, fold_experts=True)
    with pytest.raises(prw.UnsupportedError, match="would round the experts' part away"):
        tools.draw(build().to(torch.bfloat16), "a", photo, as_of="inpainting", fold_experts=True)
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0
