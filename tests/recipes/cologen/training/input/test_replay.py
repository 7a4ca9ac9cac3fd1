"""Replay: a fraction of a stage's draws is of earlier tasks, the same however draws are dealt or resumed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.opening import DataSource, StageSource
from recipes.cologen.data.sampler import BatchSampler, SampleIndex
from recipes.cologen.data.world import World
from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.training.input.batches import Examples, loaded
from recipes.cologen.training.input.replay import ReplayedExamples, own_tokens
from recipes.cologen.training.step import StepLosses
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_run import pools, rows

NONE = DropoutSettings(text=0, source=0)
REPLAY = ("stages.grounding.replay={inpainting: 0.4}", "stages.*.steps=4")


def mixed(**replay):
    world = World(0)
    data = DataSource(StageSource(world, None))
    return ReplayedExamples(Examples(world, "editing", NONE), data, replay, NONE)


def test_each_task_gets_its_fraction():
    examples = mixed(inpainting=0.1, control=0.3)
    made = [examples[SampleIndex(number, 1000 + number)] for number in range(600)]
    tasks = [one.task for one in made]
    for task, fraction in (("inpainting", 0.1), ("control", 0.3), ("editing", 0.6)):
        assert tasks.count(task) / len(tasks) == pytest.approx(fraction, abs=0.07)
    assert [one.replayed for one in made] == [task != "editing" for task in tasks]
    replayed = {one.id for one in made if one.replayed}
    assert len(replayed) > 200  # not the same few records again and again


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 10**6))
def test_a_draw_decides_by_its_seed_alone(seed, index):
    first, again = (mixed(inpainting=0.5)[SampleIndex(index, seed)] for _ in range(2))
    assert (first.id, first.prompt, first.replayed) == (
        again.id,
        again.prompt,
        again.replayed,
    )


@pytest.mark.parametrize(("world_size", "micro"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_change_nothing(world_size, micro):
    found = {}
    for rank in range(world_size):
        sampler = BatchSampler(
            None, batch_size=8, seed=3, micro_batch=micro, rank=rank, world_size=world_size
        )
        stream = loaded(mixed(control=0.5), sampler)
        for _ in range(3 * sampler.micro_batches):
            batch = next(stream)
            found |= {
                seed: (record, replayed)
                for seed, record, replayed in zip(batch.seeds, batch.ids, batch.replayed, strict=True)
            }
    whole = next(loaded(mixed(control=0.5), BatchSampler(None, batch_size=24, seed=3)))
    assert len({replayed for _, replayed in found.values()}) == 2
    for seed, record, replayed in zip(whole.seeds, whole.ids, whole.replayed, strict=True):
        assert found[seed] == (record, replayed)


def test_the_share_is_of_the_stages_own_examples():
    batch = next(loaded(mixed(control=0.5), BatchSampler(None, batch_size=8, seed=3)))
    mask = own_tokens(batch, 5, torch.device("cpu"))
    assert mask.shape == (8, 5)
    assert mask.all(1).tolist() == [not replayed for replayed in batch.replayed]
    assert mask.any(1).tolist() == mask.all(1).tolist()
    own = batch._replace(replayed=(False,) * 8)
    assert own_tokens(own, 5, torch.device("cpu")) is None


def test_a_batch_without_a_share_does_not_move_the_mean():
    mean = StepLosses.mean([StepLosses(1, 0, float("nan"), 1), StepLosses(3, 0, 0.5, 1)])
    assert (mean.task_loss, mean.share) == (2, 0.5)


def test_a_stage_with_replay_resumes_bit_for_bit_and_its_rows_are_numbers(base_path, run, stop_at, tmp_path):
    config = make_config(base_path, *REPLAY, "machine.micro_batch=1", "validation.samples=0")
    run(config, tmp_path / "whole", "inpainting..grounding")
    stop_at(7)
    run(config, tmp_path / "run", "inpainting..grounding")
    run(config, tmp_path / "run", "inpainting..grounding")
    assert pools(tmp_path / "run") == pools(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert all(0 <= row["share"] <= 1 for row in rows(tmp_path / "run"))
    plain = make_config(base_path, "stages.*.steps=4", "machine.micro_batch=1", "validation.samples=0")
    run(plain, tmp_path / "plain", "inpainting..grounding")
    assert pools(tmp_path / "plain")["inpainting"] == pools(tmp_path / "whole")["inpainting"]
    assert pools(tmp_path / "plain")["grounding"] != pools(tmp_path / "whole")["grounding"]


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        (
            "{control: 0.1}",
            r"stages\.grounding\.replay names control; expected earlier stages \(inpainting\)",
        ),
        ("{grounding: 0.1}", "replay names grounding"),
        ("{inpainting: 1.0}", "above 0, and together below 1"),
        ("{inpainting: 0}", "above 0, and together below 1"),
    ],
)
def test_what_cannot_be_replayed_is_refused(base_path, replay, message):
    with pytest.raises(ConfigError, match=message):
        make_config(base_path, f"stages.grounding.replay={replay}")


def test_fractions_that_leave_nothing_are_refused():
    row = COLOGEN_STAGES["editing"].model_dump()
    with pytest.raises(ValidationError, match="together below 1"):
        type(COLOGEN_STAGES["editing"])(**{**row, "replay": {"inpainting": 0.5, "control": 0.5}})
