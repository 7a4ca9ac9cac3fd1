"""Curricula as data, and what a pool remembers of the stages that trained it: saved with it, and binding."""

import json

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

import prw

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

NAMES = ("inpainting", "grounding", "control")


def stage(name, **changes):
    return prw.Stage(name, **{"rho": 0.8, "alpha": 0.5, "steps": 10, "lr": 1e-4, **changes})


def curriculum(**changes):
    """Three stages; changes are of the second."""
    return prw.Curriculum([stage(name, **(changes if name == "grounding" else {})) for name in NAMES])


@pytest.fixture
def weave(make_plain):
    return prw.inject(make_plain(), rank=2)


STAGES = st.builds(
    prw.Stage,
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8).filter("zero".__ne__),
    rho=st.floats(0, 1),
    alpha=st.floats(0, 10),
    steps=st.integers(1, 10**6),
    lr=st.floats(1e-9, 1),
)


@settings(max_examples=25)
@given(stages=st.lists(STAGES, min_size=1, max_size=4, unique_by=lambda one: one.name))
def test_data_and_file_give_the_same_stages_back(stages, tmp_path_factory):
    made = prw.Curriculum(stages)
    file = tmp_path_factory.mktemp("curriculum") / "new" / "stages.json"
    made.save(file)
    forms = [
        prw.Curriculum.load(file),
        prw.Curriculum.from_dict(made.to_dict()),
        prw.Curriculum.from_dict(yaml.safe_load(yaml.safe_dump(made.to_dict()))),
    ]
    assert all(tuple(form) == tuple(made) for form in forms)
    assert [path.name for path in file.parent.iterdir()] == ["stages.json"]


def test_what_holds_no_stages_is_refused(tmp_path):
    good = curriculum().to_dict()["stages"]
    for values, message in (
        ([], "got list"),
        ({"stage": []}, "got stage"),
        ({"stages": {}}, "got stages"),
        ({"stages": [3]}, "stage 0 is a int"),
        (
            {"stages": [*good, {"name": "x", "rank": 3}]},
            "stage 3 .x.*missing rho, alpha, steps, lr, unknown rank",
        ),
        ({"stages": []}, "at least one stage"),
    ):
        with pytest.raises(prw.CurriculumError, match=message):
            prw.Curriculum.from_dict(values)
    with pytest.raises(prw.ConfigError, match="rho"):
        prw.Curriculum.from_dict({"stages": [{**good[0], "rho": 80}]})
    (tmp_path / "cut.json").write_text('{"stages": [')
    for file in (tmp_path / "cut.json", tmp_path / "missing.json"):
        with pytest.raises(prw.StorageError, match=file.name):
            prw.Curriculum.load(file)


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


def test_progress_is_told_and_checked(weave):
    course = curriculum(steps=2)
    assert course.done(weave) == 0
    with pytest.raises(prw.CurriculumError, match="no stage of this curriculum is running"):
        course.advance(weave)
    for current in course.stages(weave):
        assert course.done(weave) == 0
        course.advance(weave, current.steps - 1)
        course.advance(weave)
        assert course.done(weave) == current.steps
        with pytest.raises(prw.CurriculumError, match="cannot advance by 1"):
            course.advance(weave)
    assert course.done(weave) == 0
    assert {name: entry["done"] for name, entry in weave.config.stages.items()} == {
        "inpainting": 10,
        "grounding": 2,
        "control": 10,
    }


def halfway(weave, course, done=4):
    """Walk into the second stage and stop there."""
    for current in course.stages(weave):
        if current.name == "grounding":
            course.advance(weave, done)
            break


def test_a_stage_with_all_its_steps_is_not_given_again(weave, make_plain, tmp_path):
    course = curriculum()
    halfway(weave, course, done=10)
    weave.save_pretrained(tmp_path)
    loaded = prw.load(make_plain(), tmp_path)
    assert not loaded.frozen
    assert [current.name for current in course.stages(loaded)] == ["control"]


@pytest.mark.parametrize(
    "changes", [{"rho": 0.7}, {"alpha": 0.1}, {"lr": 1e-3}, {"init": "inpainting"}, {"steps": 11}]
)
def test_a_changed_past_is_refused(weave, make_plain, tmp_path, changes):
    halfway(weave, curriculum())
    weave.freeze()
    weave.save_pretrained(tmp_path)
    loaded = prw.load(make_plain(), tmp_path)
    (setting,) = changes
    with pytest.raises(
        prw.CurriculumError, match=rf"'grounding' has been trained with other settings:\n  {setting}: "
    ):
        next(curriculum(**changes).stages(loaded))
    assert [current.name for current in curriculum(init="zero").stages(loaded)] == ["control"]


def test_the_running_stage_may_still_get_other_steps_but_not_fewer_than_it_had(weave):
    halfway(weave, curriculum())
    for changes in ({"rho": 0.7}, {"lr": 1e-3}):
        with pytest.raises(prw.CurriculumError, match="trained for 4 steps with other settings"):
            next(curriculum(**changes).stages(weave))
    with pytest.raises(prw.CurriculumError, match="has 4 steps behind it, and the curriculum gives it 3"):
        next(curriculum(steps=3).stages(weave))
    longer = curriculum(steps=20)
    assert next(longer.stages(weave)).name == "grounding"
    longer.advance(weave, 16)
    assert weave.config.stages["grounding"]["steps"] == 20


def test_the_future_may_change(weave):
    halfway(weave, curriculum())
    stages = [*curriculum()[:2], stage("colouring", rho=0.5)]
    assert [current.name for current in prw.Curriculum(stages).stages(weave)] == ["grounding", "colouring"]


def test_experts_that_no_curriculum_trained_are_taken_as_they_are(weave):
    weave.add_expert("inpainting")
    weave.freeze()
    assert weave.config.stages == {}
    assert [current.name for current in curriculum().stages(weave)] == ["grounding", "control"]
    weave.remove_expert("control")
    weave.add_expert("control")  # another one: what was known of the old one is gone
    changed = prw.Curriculum([*curriculum()[:2], stage("control", rho=0.1)])
    assert [current.name for current in changed.stages(weave)] == ["control"]


def test_every_way_of_saving_carries_the_ledger(make_host, tmp_path):
    model = get_peft_model(make_host("llama").model, prw.PrwConfig(rank=2))
    weave = prw.Weave(model)
    halfway(weave, curriculum())
    model.save_pretrained(tmp_path)
    loaded = prw.Weave(PeftModel.from_pretrained(make_host("llama").model, tmp_path, is_trainable=True))
    assert loaded.config.stages == weave.config.stages
    assert curriculum().done(loaded) == 4
    assert json.loads((tmp_path / "adapter_config.json").read_text())["stages"]["grounding"]["done"] == 4


def test_weights_of_one_step_never_go_with_the_count_of_another(weave, tmp_path):
    halfway(weave, curriculum())
    weave.save_pretrained(tmp_path)
    before = (tmp_path / "adapter_config.json").read_text()
    curriculum().advance(weave)
    weave.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(before)
    with pytest.raises(prw.StorageError, match="mixes two saves"):
        prw.load(weave.model, tmp_path, adapter="other")


@pytest.mark.parametrize("start", [0, 1])
def test_a_pool_that_is_there_is_brought_forward(weave, make_plain, wake, tmp_path, start):
    course = curriculum()
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
    course = curriculum()
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
