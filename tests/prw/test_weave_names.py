"""Experts are a list of names; a bare string is refused and not read letter by letter."""

import pytest
import torch

import prw


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
        with pytest.raises(prw.CurriculumError, match=r"a list of prw\.Stage"):
            prw.Curriculum(stages)
    stage = prw.Stage("a", rho=1.0, alpha=0.0, steps=1, lr=0.1)
    assert prw.Curriculum(stage).names == ("a",)
