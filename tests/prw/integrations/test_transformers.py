"""The stock Trainer through a curriculum: what trains, what is logged, what is resumed, what is refused."""

import shutil

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import prw
from prw.integrations.transformers import PrwCallback

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def equal(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_stage_trains_its_expert_and_nothing_else(make_run, tmp_path):
    run, states = make_run(tmp_path), []
    for stage in run.callback.stages():
        before = run.state()
        assert {n for n in before if f".prw_A{len(states)}" in n}, "the stage's expert is there"
        run.trainer(stage, max_grad_norm=0.0).train()
        after = run.state()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        own = {name for name in before if f"{len(states)}.default" in name and ".prw_" in name}
        assert moved == {name for name in own if "prw_noise0" not in name}, "alone, noise decides nothing"
        states.append(stage.name)
    assert run.weave.experts == ("up", "down") == tuple(states)
    assert run.weave.frozen
    folders = [prw.load(make_run(tmp_path).weave.model, tmp_path / name, adapter=name) for name in states]
    assert [weave.experts for weave in folders] == [("up",), ("up", "down")]


@pytest.mark.parametrize(
    ("kind", "stop"),
    [("plain", ("up", 3)), ("plain", ("down", 3)), ("peft", ("down", 3)), ("bare", ("down", 3))],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make_run, tmp_path, kind, stop):
    whole = make_run(tmp_path / "whole", kind)
    whole.train()
    cut = make_run(tmp_path / "cut", kind)
    with pytest.raises(prw.CurriculumError, match=rf"stage '{stop[0]}' was left after {stop[1]} of"):
        cut.train(stop=stop)
    resumed = make_run(tmp_path / "cut", kind)
    resumed.train(resume=True)
    assert resumed.resumed[0] == str(tmp_path / "cut" / stop[0] / "checkpoint-2")
    assert not equal(cut.state(), whole.state())
    assert equal(resumed.state(), whole.state())
    assert resumed.weave.config.stages == whole.weave.config.stages
    assert list(make_run(tmp_path / "cut", kind).callback.stages(resume=True)) == []


def test_a_run_goes_on_between_two_stages_and_after_an_end_that_was_cut_off(make_run, tmp_path):
    whole = make_run(tmp_path / "whole")
    whole.train()
    states = [whole.state()]
    for cut_off in (False, True):
        folder = tmp_path / f"cut{cut_off}"
        shutil.copytree(tmp_path / "whole" / "up", folder / "up")
        if cut_off:  # the last step was saved, the finished pool was not, and a checkpoint is half written
            for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
                (folder / "up" / name).unlink()
            shutil.copytree(folder / "up" / "checkpoint-4", folder / "up" / "checkpoint-99")
            (folder / "up" / "checkpoint-99" / "trainer_state.json").unlink()
        resumed = make_run(folder)
        resumed.train(resume=True)
        assert resumed.resumed == [None]
        assert (folder / "up" / "adapter_config.json").is_file()
        states.append(resumed.state())
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])


def test_the_veteran_loss_is_in_the_loss_and_the_routing_in_the_log(make_run, tmp_path):
    run = make_run(tmp_path)
    run.train()
    up, down = [log for log in run.logs if log["step"] == 4]
    assert (up["prw/share"], up["prw/veteran_loss"], up["prw/gate"]) == (1.0, 0.0, 1.0)
    assert 0.0 < down["prw/share"] < 1.0
    assert 0.0 < down["prw/veteran_loss"] <= 0.5 * 0.8
    assert 0.0 < down["prw/entropy"] <= 0.6932
    statistics = run.callback.statistics
    assert statistics.experts == ("up", "down")
    assert statistics.share == down["prw/share"]
    real = [8, 4]
    assert int(statistics.site_items[0]) <= 2 * 2 * 2 * real[0], "two steps of two forwards of two samples"
    assert int(statistics.site_items[0]) % real[1] == 0, "pads do not count"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulation_adds_the_loss_once_per_step(make_run, tmp_path, accumulate):
    """A constant of 1 is added: the logged loss must rise by 1, however many forwards make a step."""
    losses = []
    for constant in (0.0, 1.0):
        run = make_run(tmp_path / str(constant))
        run.weave.add_expert("up")
        options = {"max_steps": 3, "gradient_accumulation_steps": accumulate, "logging_steps": 1}
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        stage = run.curriculum["up"]
        run.callback.stage = stage
        trainer = Trainer(run.model, args, train_dataset=run.trainer(stage).train_dataset)
        with run.weave.add_to_loss(lambda routing, constant=constant: torch.tensor(constant)):
            trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx([loss + 1.0 for loss in losses[0]], abs=1e-4)


def test_a_trainer_that_would_not_train_the_stage_is_refused(make_run, tmp_path):
    run = make_run(tmp_path)
    walk = run.callback.stages()
    with pytest.raises(prw.CurriculumError, match="no stage is running"):
        run.callback.arguments  # noqa: B018
    up = next(walk)
    first = run.trainer(up)
    for changes, message in (
        ({"learning_rate": 1e-4}, "learning_rate=0.0001, not 0.01"),
        ({"max_steps": 3}, "max_steps=3"),
    ):
        with pytest.raises(prw.CurriculumError, match=message):
            run.trainer(up, **changes).train()
    stranger = make_run(tmp_path)
    stranger.weave.add_expert("up")
    with pytest.raises(prw.CurriculumError, match="does not contain the weave's"):
        Trainer(
            stranger.model, first.args, train_dataset=first.train_dataset, callbacks=[run.callback]
        ).train()
    first.train()
    next(walk)
    first.args.output_dir, first.args.max_steps = (
        run.callback.arguments[key] for key in ("output_dir", "max_steps")
    )
    with pytest.raises(prw.CurriculumError, match="not in the Trainer's optimiser"):
        first.train()


def test_a_trainer_that_begins_elsewhere_than_the_pool_is_refused(make_run, tmp_path):
    with pytest.raises(prw.CurriculumError, match="was left after 3"):
        make_run(tmp_path).train(stop=("up", 3))
    with pytest.raises(prw.CurriculumError, match="holds a run already"):
        next(make_run(tmp_path).callback.stages())
    run = make_run(tmp_path)
    with pytest.raises(
        prw.CurriculumError, match="has 2 steps of stage 'up' behind it, and the Trainer begins at step 0"
    ):
        for stage in run.callback.stages(resume=True):
            run.trainer(stage).train()
    changed = prw.Curriculum([run.curriculum[0].model_copy(update={"rho": 0.5}), run.curriculum[1]])
    with pytest.raises(prw.CurriculumError, match=r"other settings:\n  rho: 1.0 then, 0.5 now"):
        next(make_run(tmp_path, curriculum=changed).callback.stages(resume=True))


def test_a_loss_that_the_trainer_makes_itself_is_refused(make_run, tmp_path):
    run = make_run(tmp_path)
    for stage in run.callback.stages():
        with pytest.raises(prw.RoutingError, match="label_smoothing_factor"):
            run.trainer(stage, label_smoothing_factor=0.1).train()
        break


def test_a_stage_may_be_ended_early_by_freezing(make_run, tmp_path):
    run = make_run(tmp_path)
    for stage in run.callback.stages():
        run.trainer(stage, stop=2).train()
        run.weave.freeze()
    assert list(make_run(tmp_path).callback.stages(resume=True)) == []


def test_what_cannot_be_a_run_is_refused(make_run, tmp_path):
    run = make_run(
        tmp_path, curriculum=prw.Curriculum([prw.Stage("a/b", rho=1.0, alpha=0.0, steps=1, lr=1.0)])
    )
    with pytest.raises(prw.CurriculumError, match="'a/b' cannot be one"):
        next(run.callback.stages())
    run.weave.config.modules_to_save = ["lm_head"]
    with pytest.raises(prw.UnsupportedError, match="modules_to_save"):
        next(PrwCallback(run.weave, run.curriculum, tmp_path).stages())


class RunsOut:
    """Lets forwards of large batches run out of memory once so many have run, as a long sequence would."""

    def __init__(self, largest, after):
        self.largest, self.after = largest, after
        self.sizes = []

    def __call__(self, module, args, kwargs):
        size = len(kwargs["input_ids"])
        self.sizes.append(size)
        if size > self.largest and len(self.sizes) > self.after:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_stage_goes_on_after_the_trainer_has_looked_for_a_smaller_batch(make_run, tmp_path, caplog):
    run, fits = make_run(tmp_path), RunsOut(largest=2, after=3)
    run.model.register_forward_pre_hook(fits, with_kwargs=True)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    run.train(auto_find_batch_size=True, **options)
    assert run.weave.experts == ("up", "down")
    assert run.weave.frozen
    assert [entry["done"] for entry in run.weave.config.stages.values()] == [5, 4]
    assert fits.sizes[:3] == [4, 4, 2], "the last batch of an epoch is smaller"
    assert "starts stage 'up' again at step 0" in caplog.text
    assert "the 3 steps since then stay in the expert's weights" in caplog.text


class Uneven(list):
    """Batches as a sampler that counts tokens gives them: of no one size."""


def test_so_does_one_whose_loader_has_no_one_size_of_batches(make_run, tmp_path, caplog, monkeypatch):
    def uneven(trainer):
        size, rows = trainer._train_batch_size, range(len(trainer.train_dataset))
        batches = Uneven(list(rows[start : start + size]) for start in rows[::size])
        return DataLoader(trainer.train_dataset, batch_sampler=batches, collate_fn=trainer.data_collator)

    monkeypatch.setattr(Trainer, "get_train_dataloader", uneven)
    run, fits = make_run(tmp_path), RunsOut(largest=2, after=3)
    run.model.register_forward_pre_hook(fits, with_kwargs=True)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    run.train(auto_find_batch_size=True, **options)
    assert [entry["done"] for entry in run.weave.config.stages.values()] == [5, 4]
    assert "starts stage 'up' again at step 0" in caplog.text


class Interrupted(RunsOut):
    """Is stopped by hand: before any error, or after the one that made the batches smaller."""

    @property
    def last(self):
        return 4 if self.largest == 4 else 7

    def __call__(self, module, args, kwargs):
        super().__call__(module, args, kwargs)
        if len(self.sizes) == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("largest", [4, 2])
@pytest.mark.parametrize("again", ["same", "smaller"])
def test_a_trainer_that_was_interrupted_is_no_restart_of_the_search_for_a_batch(
    make_run, tmp_path, largest, again
):
    run, fits = make_run(tmp_path), Interrupted(largest=largest, after=3)
    run.model.register_forward_pre_hook(fits, with_kwargs=True)
    options = {"auto_find_batch_size": True, "gradient_accumulation_steps": 1}
    with pytest.raises(prw.CurriculumError, match=r"has [1-6] steps of stage 'up' .* begins at step 0"):
        for stage in run.callback.stages():
            trainer = run.trainer(stage, per_device_train_batch_size=4, **options)
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            assert len(fits.sizes) == fits.last
            if again == "smaller":
                trainer = run.trainer(stage, per_device_train_batch_size=1, **options)
            trainer.train()
    assert run.weave.config.stages["up"]["done"] > 0


def test_a_resumed_stage_goes_on_after_an_out_of_memory_error_too(make_run, tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    with pytest.raises(prw.CurriculumError, match="was left after 3 of"):
        make_run(tmp_path).train(stop=("up", 3), auto_find_batch_size=True, **options)
    run, fits = make_run(tmp_path), RunsOut(largest=2, after=1)
    run.model.register_forward_pre_hook(fits, with_kwargs=True)
    run.train(resume=True, auto_find_batch_size=True, **options)
    assert run.resumed[0].endswith("checkpoint-2")
    assert [entry["done"] for entry in run.weave.config.stages.values()] == [5, 4]
