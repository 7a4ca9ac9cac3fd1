"""Stages in order: each adds its expert, freezes the rest, and a pool goes on where it is."""

import pytest
import torch

import prw

NAMES = ("inpainting", "grounding", "control")


def stage(name, **changes):
    return prw.Stage(name, **{"rho": 0.8, "alpha": 0.5, "steps": 10, "lr": 1e-4, **changes})


@pytest.fixture
def curriculum():
    return prw.Curriculum([stage(name) for name in NAMES])


@pytest.fixture
def weave(make_plain):
    return prw.inject(make_plain(), rank=2)


def test_a_stage_adds_its_expert_and_freezes_the_rest(curriculum, weave):
    for index, current in enumerate(curriculum.stages(weave)):
        assert weave.experts == NAMES[: index + 1]
        assert current is curriculum[index] is curriculum[current.name]
        training = {n for n, p in weave.model.named_parameters() if p.requires_grad}
        assert training
        assert all(f"{index}.default" in name for name in training)
    assert weave.experts == NAMES == curriculum.names
    assert weave.trainable_parameters() == []
    assert list(curriculum.stages(weave)) == []


def test_a_stopped_stage_is_taken_up_again(curriculum, weave, make_plain, tmp_path):
    for current in curriculum.stages(weave):
        if current.name == "grounding":
            weave.save_pretrained(tmp_path / "running")
            weave.freeze()
            weave.save_pretrained(tmp_path / "finished")
            break
    running = prw.load(make_plain(), tmp_path / "running")
    assert [current.name for current in curriculum.stages(running)] == ["grounding", "control"]
    finished = prw.load(make_plain(), tmp_path / "finished")
    assert finished.trainable_parameters() == []
    assert [current.name for current in curriculum.stages(finished)] == ["control"]


def test_a_stage_can_start_from_an_earlier_one(weave):
    torch.manual_seed(0)
    stages = [stage("a"), stage("b", init="a"), stage("c", init="zero")]
    for current in prw.Curriculum(stages).stages(weave):
        weights = weave.model.blocks[0].to_k
        if current.name == "a":
            torch.nn.init.normal_(weights.prw_B0["default"].weight)
    assert torch.equal(weights.prw_B1["default"].weight, weights.prw_B0["default"].weight)
    assert not weights.prw_B2["default"].weight.any()


def test_a_foreign_pool_is_refused(curriculum, weave):
    weave.add_expert("editing")
    with pytest.raises(prw.CurriculumError, match=r"\(editing\) are not the first stages"):
        next(curriculum.stages(weave))
    assert weave.experts == ("editing",)


def test_stages_that_cannot_be_are_refused(curriculum):
    with pytest.raises(prw.CurriculumError, match="at least one"):
        prw.Curriculum([])
    with pytest.raises(prw.CurriculumError, match="two stages"):
        prw.Curriculum([stage("a"), stage("a")])
    with pytest.raises(prw.CurriculumError, match="no earlier stage"):
        prw.Curriculum([stage("a", init="b"), stage("b")])
    with pytest.raises(prw.CurriculumError, match="stages are inpainting"):
        curriculum["editing"]
    for changes in ({"rho": 80.0}, {"alpha": -1.0}, {"steps": 0}, {"lr": 0.0}):
        with pytest.raises(prw.ConfigError, match=next(iter(changes))):
            stage("a", **changes)
    with pytest.raises(TypeError, match="rank"):
        stage("a", rank=3)
    assert len(curriculum) == 3
    assert [each.name for each in curriculum] == list(NAMES)


def test_it_is_a_sequence_of_stages_by_name_too(curriculum):
    assert "grounding" in curriculum
    assert curriculum["grounding"] in curriculum
    assert "editing" not in curriculum
    assert stage("editing") not in curriculum
    assert 3 not in curriculum
    assert curriculum[:2] == (curriculum[0], curriculum[1])
    assert curriculum[-1] is curriculum["control"]
    with pytest.raises(IndexError):
        curriculum[3]
