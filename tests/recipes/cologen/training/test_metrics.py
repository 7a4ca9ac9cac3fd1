"""Rows are written once each, and rows that a checkpoint does not know of are cut off."""

import json

from recipes.cologen.training.metrics import MetricsLog

ROW = {"stage": "control", "step": 1, "loss": 3.0, "task_loss": 2.0, "veteran_loss": 1.0}
ROW |= {"share": 0.5, "gate": 0.7, "lr": 0.1, "seconds": 1.0}


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_carry_their_kind(tmp_path):
    with MetricsLog(tmp_path, True, length=0, step=0) as log:
        log.train(1, ROW)
        log.validation(1, {"stage": "control", "step": 1, "scores": {"control": 0.5}})
    assert [row["kind"] for row in read(tmp_path)] == ["train", "validation"]
    assert read(tmp_path)[0] == {"kind": "train", **ROW}
    assert list((tmp_path / "tensorboard").iterdir())


def test_rows_after_the_checkpoint_are_cut_off_and_written_anew(tmp_path):
    with MetricsLog(tmp_path, True, length=0, step=0) as log:
        log.train(1, ROW)
        length = log.length()
        log.train(2, {**ROW, "step": 2})
    with MetricsLog(tmp_path, True, length=length, step=1) as log:
        log.train(2, {**ROW, "step": 3})
    assert [row["step"] for row in read(tmp_path)] == [1, 3]


def test_a_log_that_lost_its_end_is_gone_on_with(tmp_path):
    with MetricsLog(tmp_path, True, length=10_000, step=0) as log:
        log.train(1, ROW)
    assert len(read(tmp_path)) == 1


def test_other_ranks_write_nothing(tmp_path):
    with MetricsLog(tmp_path, False, length=0, step=0) as log:
        log.train(1, ROW)
        assert log.length() == 0
    assert list(tmp_path.iterdir()) == []
