"""What a pool remembers of the stages that trained it: saved with it, and binding."""

import json

import pytest
from peft import PeftModel, get_peft_model

import prw
from tests.prw.curriculum.courses import curriculum, halfway, stage

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def weave(make_plain):
    return prw.inject(make_plain(), rank=2)


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


@pytest.mark.parametrize("entry", [{"rho": 0.8}, {**stage("grounding").model_dump(), "done": -1}])
def test_a_damaged_ledger_is_refused(weave, entry):
    halfway(weave, curriculum())
    weave.config.stages = {**weave.config.stages, "grounding": entry}
    with pytest.raises(prw.CurriculumError, match="the pool's ledger"):
        next(curriculum().stages(weave))
