"""What a Trainer could not save, or would lose when it is resumed, is refused before it trains."""

import pytest
from peft import LoraConfig

import prw

LORA = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def test_what_trains_beside_the_pool_is_refused_until_it_is_frozen(make_run, tmp_path):
    run = make_run(tmp_path)
    walk = run.callback.stages()
    stage = next(walk)
    norm = run.model.model.norm.weight
    norm.requires_grad_(True)
    with pytest.raises(prw.UnsupportedError, match=r"1 parameters train beside the pool \(model\.norm"):
        run.trainer(stage).train()
    norm.requires_grad_(False)
    run.trainer(stage).train()


def test_an_active_lora_that_would_stop_the_first_save_is_refused(make_run, tmp_path):
    run = make_run(tmp_path)
    run.model.add_adapter(LORA, "style")
    run.model.set_adapter(["style", "default"])
    walk = run.callback.stages()
    stage = next(walk)
    for name, parameter in run.model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)
    with pytest.raises(prw.UnsupportedError, match="saves a model with one active adapter"):
        run.trainer(stage).train()


def test_loading_the_best_model_at_the_end_is_refused(make_run, tmp_path):
    run = make_run(tmp_path)
    walk = run.callback.stages()
    stage = next(walk)
    trainer = run.trainer(stage)
    trainer.args.load_best_model_at_end = True
    with pytest.raises(prw.UnsupportedError, match="load_best_model_at_end"):
        trainer.train()


def test_a_folder_with_a_stage_that_the_curriculum_has_lost_is_refused(make_run, tmp_path):
    with pytest.raises(prw.CurriculumError, match="was left after 2 of 4 steps"):
        make_run(tmp_path).train(stop=("down", 2))
    shorter = prw.Curriculum([prw.Stage("up", rho=1.0, alpha=0.0, steps=5, lr=1e-2)])
    run = make_run(tmp_path, curriculum=shorter)
    with pytest.raises(prw.CurriculumError, match="holds pools of down, which this curriculum"):
        next(run.callback.stages(resume=True))
    assert run.weave.experts == ()
