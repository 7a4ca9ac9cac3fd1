"""Stages in order: each adds its expert and freezes the rest; a pool goes on where it is, or is restored."""

import pytest
import torch
from pydantic import ValidationError

import prw
from tests.prw.curriculum.courses import NAMES, halfway, stage
from tests.prw.curriculum.courses import curriculum as course_of_three


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


@pytest.mark.parametrize("start", [0, 1])
def test_a_pool_that_is_there_is_brought_forward(weave, make_plain, wake, tmp_path, start):
    course = course_of_three()
    halfway(weave, course)
    wake(weave)
    weave.save_pretrained(tmp_path)
    other = prw.inject(make_plain(), rank=2, experts=NAMES[:start])
    other.model.load_state_dict(
        {name: weight for name, weight in weave.model.state_dict().items() if ".prw_" not in name},
        strict=False,
    )
    course.resume(other, tmp_path)
    ours, theirs = weave.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {name: p.requires_grad for name, p in weave.model.named_parameters() if ".prw_" in name} == {
        name: p.requires_grad for name, p in other.model.named_parameters() if ".prw_" in name
    }
    assert [current.name for current in course.stages(other)] == ["grounding", "control"]


def test_a_pool_that_does_not_fit_is_left_as_it_was(weave, make_plain, tmp_path):
    course = course_of_three()
    halfway(weave, course)
    weave.save_pretrained(tmp_path)
    with pytest.raises(prw.CurriculumError, match="begins otherwise: editing"):
        course.resume(prw.inject(make_plain(), rank=2, experts=["editing"]), tmp_path)
    with pytest.raises(prw.CurriculumError, match="other settings than the model's"):
        course.resume(prw.inject(make_plain(), rank=3), tmp_path)
    wider = prw.inject(make_plain(width=12), rank=2)
    with pytest.raises(prw.StorageError, match="does not fit this model"):
        course.resume(wider, tmp_path)
    assert wider.experts == ()
    with pytest.raises(prw.CurriculumError, match="not the first stages"):
        prw.Curriculum([stage("editing")]).resume(prw.inject(make_plain(), rank=2), tmp_path)


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_any_loop_goes_on_in_the_middle_of_a_stage(make_plain, tmp_path, stop):
    course = prw.Curriculum([stage("a", steps=5, lr=0.1), stage("b", steps=3, lr=0.1, init="a")])
    models = [make_plain() for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    loop(prw.inject(models[0], rank=2), course)
    loop(prw.inject(models[1], rank=2), course, stop, tmp_path)
    gone_on = prw.load(models[2], tmp_path)
    assert course.done(gone_on) == (stop if stop <= 5 else stop - 5)
    loop(gone_on, course)
    ours, theirs = models[0].state_dict(), models[2].state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def loop(weave, course, steps=-1, folder=None):
    """The plainest loop there is; stops after so many steps in all, saving after each."""
    walk = course.stages(weave)
    torch.manual_seed(len(weave.experts))  # a new expert draws its start
    while (current := next(walk, None)) is not None:
        optimizer = torch.optim.SGD(weave.trainable_parameters(), lr=current.lr)
        for step in range(course.done(weave), current.steps):
            if steps == 0:
                return
            torch.manual_seed(step)
            with weave.record() as routing:
                loss = weave.model(torch.randn(2, 4, 8)).square().mean()
            loss = loss + prw.veteran_loss(routing, current.rho, current.alpha)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.advance(weave)
            steps -= 1
            if folder is not None:
                weave.save_pretrained(folder)
        torch.manual_seed(len(weave.experts))


def test_it_is_a_value(curriculum):
    assert curriculum == prw.Curriculum(list(curriculum))
    assert curriculum != prw.Curriculum(curriculum[:2])
    assert len({curriculum, prw.Curriculum(list(curriculum))}) == 1
    with pytest.raises(ValidationError, match="frozen"):
        curriculum.root = ()
    with pytest.raises(prw.CurriculumError, match="1: expected a Stage, got 'a'"):
        prw.Curriculum([curriculum[0], "a"])
