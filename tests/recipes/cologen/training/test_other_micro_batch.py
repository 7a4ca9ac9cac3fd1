"""A stage goes on with another number of micro-batches only where that changes nothing that is learnt."""

import signal

import pytest
import torch

from recipes.cologen.runs.checkpoint import ForeignCheckpointError
from tests.recipes.cologen.training.conftest import make_config


@pytest.fixture
def begun(run, at_step, tmp_path):
    """Stops the second stage, whose veteran loss has a weight, after two of its steps."""

    def make(base_path, *settings):
        everything = ("validation.samples=0", "stages.*.steps=4", "logging.trackers=[]", *settings)
        config = make_config(base_path, *everything)
        at_step(6, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(config, tmp_path / "run", "inpainting..grounding").stopped.step == 2
        at_step(10**6, lambda: None)
        return lambda *changes: run(
            make_config(base_path, *everything, *changes), tmp_path / "run", "grounding"
        )

    return make


def test_it_is_refused_by_name_where_the_veteran_loss_is_of_each_part(base_path, begun, tmp_path):
    go_on = begun(base_path)
    with pytest.raises(
        ForeignCheckpointError, match=r"(?s)'grounding' began with 1 .*with 2 .*micro_batch=2.*allow"
    ):
        go_on("machine.micro_batch=2")
    assert go_on("machine.micro_batch=2", "machine.other_micro_batch=allow").trained == ("grounding",)


def test_it_is_refused_the_other_way_round_too(base_path, begun):
    go_on = begun(base_path, "machine.micro_batch=1")
    with pytest.raises(ForeignCheckpointError, match=r"began with 4 .*with 1 "):
        go_on("machine.micro_batch=null")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["veteran.per=sample"], "machine.micro_batch=1"),
        (["stages.grounding.alpha=0"], "machine.micro_batch=2"),
        ([], "machine.micro_batch=4"),  # one part, as before
    ],
)
def test_it_may_change_where_nothing_learnt_depends_on_it(before, after, base_path, begun):
    assert begun(base_path, *before)(after).trained == ("grounding",)


def test_a_checkpoint_from_before_this_was_kept_goes_on(base_path, begun, tmp_path):
    go_on = begun(base_path)
    file = tmp_path / "run/checkpoints/latest/training.pt"
    values = torch.load(file, weights_only=True)
    assert values.pop("micro_batches") == 1 and len(values.pop("windows")) == 1
    torch.save(values, file)
    assert go_on("machine.micro_batch=2").trained == ("grounding",)


def test_a_stage_that_has_not_begun_is_free(base_path, run, tmp_path):
    config = make_config(base_path, "validation.samples=0", "stages.*.steps=1")
    run(config, tmp_path / "run", "inpainting")
    other = make_config(base_path, "validation.samples=0", "stages.*.steps=1", "machine.micro_batch=1")
    assert run(other, tmp_path / "run", "grounding").trained == ("grounding",)
