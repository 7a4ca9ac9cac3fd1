"""A pool grows by the stage's expert from the start asked for, the same way whatever happened before."""

import json

import pytest
import torch

import prw
from recipes.cologen.runs.checkpoint import ForeignCheckpointError
from recipes.cologen.runs.folder import open_run
from recipes.cologen.training.growth import begin_state, curriculum, grow, load_base_to_train, open_pool

CPU = torch.device("cpu")


def grown(config, num_stages, rank=0):
    """A fresh pool walked through the first stages without training."""
    model = load_base_to_train(config, CPU)
    weave = prw.inject(model.transformer, **config.pool.model_dump())
    walk = curriculum(config).stages(weave)
    for name in config.stage_names[:num_stages]:
        grow(config, model, walk, name, rank)
    return weave


def weights(weave, index):
    """The expert's A and B of all sites."""
    parts = ("_A", "_B")
    return [
        value
        for name, value in weave.model.named_parameters()
        if any(f"prw{part}{index}." in name for part in parts)
    ]


def test_init_previous_copies_the_stage_before_and_zero_starts_from_nothing(config):
    weave = grown(config, 1)
    with torch.no_grad():
        for parameter in weave.trainable_parameters():
            parameter.fill_(0.5)
    walk = curriculum(config).stages(weave)
    next(walk)
    next(walk)
    assert len(weights(weave, 0)) == len(weights(weave, 1)) > 0
    for old, new in zip(weights(weave, 0), weights(weave, 1), strict=True):
        assert torch.equal(old, new)
    next(walk)
    assert any(not value.any() for value in weights(weave, 2))


def test_the_curriculum_is_the_configs(config):
    stages = curriculum(config)
    assert stages.names == config.stage_names
    assert [stage.init for stage in stages] == ["zero", "inpainting", "zero"]
    assert [stage.steps for stage in stages] == [stage.steps for stage in config.stages.values()]


def test_experts_start_alike_on_all_ranks_and_noise_differs(config):
    first = grown(config, 2, rank=0)
    noise = torch.randn(3)
    second = grown(config, 2, rank=1)
    assert not torch.equal(torch.randn(3), noise)
    for one, other in zip(first.trainable_parameters(), second.trainable_parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_ran_before_makes_no_difference(config):
    first = grown(config, 2)
    torch.randn(17)
    second = grown(config, 2)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_the_newest_trains_and_the_model_is_in_training_mode(config):
    weave = grown(config, 3)
    assert weave.model.training
    assert {id(value) for value in weave.model.parameters() if value.requires_grad} == {
        id(value) for value in weave.trainable_parameters()
    }


def test_a_stage_begins_where_the_rows_of_the_one_before_ended(config, tmp_path):
    folder = open_run(tmp_path / "run", config, "base")
    assert begin_state(config, folder, "inpainting").metrics_length == 0
    summary = folder.stage("inpainting") / "stage.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"fingerprint": "x", "metrics_length": 321}))
    assert begin_state(config, folder, "grounding").metrics_length == 321


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fingerprint": "x", "metrics_length": "many"}'])
def test_a_broken_summary_of_a_stage_is_refused(config, tmp_path, content):
    folder = open_run(tmp_path / "run", config, "base")
    summary = folder.stage("inpainting") / "stage.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(content)
    with pytest.raises(ForeignCheckpointError, match=r"stage\.json is not what this recipe writes"):
        open_pool(config, folder, load_base_to_train(config, CPU), "grounding")
