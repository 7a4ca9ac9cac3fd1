"""The command: what it finds, what it refuses and with which setting to change, what a probe measures."""

import io
import json
from importlib.metadata import version

import pytest
from rich.console import Console

from recipes.cologen import doctor, train
from recipes.cologen.config import REPOSITORY
from tests.recipes.cologen.training.conftest import base_path, make_config

__all__ = ["base_path"]


@pytest.fixture
def ask(base_path, tmp_path):
    """Ask about the tests' run; give the status, what was printed, and what a machine would read."""

    def run(*arguments, terminal=False):
        file, answer = tmp_path / "config.yaml", tmp_path / "answer.json"
        file.write_text(make_config(base_path).to_yaml())
        stream = io.StringIO()
        console = Console(file=stream, width=160, force_terminal=terminal, color_system=None)
        given = ["--config", file, "--output", tmp_path / "run", "--json", answer, *arguments]
        status = doctor.main(list(map(str, given)), console)
        return status, stream.getvalue(), json.loads(answer.read_text())

    return run


def test_a_run_that_works_is_told_with_all_its_numbers(ask):
    status, text, facts = ask()
    assert (status, facts["problems"]) == (0, [])
    # Two blocks of width 32, experts of rank 4 on keys and values.
    assert facts["parameters"] | {"base": None} == {
        "sites": 2,
        "experts": 3,
        "per_expert": 2 * 2 * 4 * (32 + 32),
        "all_experts": 3 * 1024,
        "routers": 3 * 2 * 2 * 32,
        "trained_at_once": 1024 + 128,
        "base": None,
    }
    assert facts["memory"]["total_bytes"] == sum(part["bytes"] for part in facts["memory"]["parts"])
    assert (facts["memory"]["micro_batch"], facts["memory"]["size"]) == (4, [16, 16])
    assert facts["stages"]["grounding"]["examples"] == 24
    assert facts["environment"]["packages"]["torch"] == version("torch")
    assert "computed, not yet measured on a GPU" in text
    assert "inpainting: steps 6, batch 4, records endless" in text
    assert "hours are not guessed" in text
    assert "  gradients: 5e-06 GB, of the newest expert, float32\n" in text
    assert "  device: no GPU here; name one with --gpu or --gpu-memory\n" in text
    assert text.endswith("nothing found that would keep this run from working\n")


def test_at_a_terminal_the_same_is_drawn_in_tables(ask):
    _, text, _ = ask(terminal=True)
    assert "┃ part" in text and "│ gradients" in text


def test_batches_that_cannot_be_dealt_are_refused_by_doctor_and_by_train(ask, tmp_path, capsys):
    status, text, facts = ask("--processes", "3", "--set", "stages.control.batch_size=5")
    assert status == 1
    assert [problem["about"] for problem in facts["problems"]] == ["batch"] * 3
    assert "problem, batch: stage 'control': a batch of 5 cannot be dealt evenly to 3 process(es)" in text
    asked = ["--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
    assert train.main([*asked, "--set", "machine.micro_batch=2", "stages.control.batch_size=5"]) == 1
    said = capsys.readouterr().err
    assert "the run cannot work as its settings are" in said and "machine.micro_batch" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_does_not_fit_is_refused_with_settings_that_do(ask):
    _, _, before = ask()
    least = before["memory"]["total_bytes"]
    status, text, facts = ask("--gpu-memory", f"{(least - 1000) / 1e9}GB")
    assert status == 1 and facts["problems"][0]["about"] == "memory"
    checkpointing = "machine.gradient_checkpointing=true"
    assert f"--set {checkpointing}" in text and "does not fit" in text
    status, text, facts = ask("--gpu-memory", f"{(least - 1000) / 1e9}GB", "--set", checkpointing)
    assert status == 0 and facts["memory"]["tight"] and "fits, tight: " in text
    status, text, facts = ask("--gpu-memory", "24GB")
    assert status == 0 and not facts["memory"]["tight"] and "fits, 23.0" in text
    status, text, _ = ask("--gpu-memory", "0.5GB")
    assert status == 1 and "no setting makes it fit" in text
    assert ask("--gpu", "RTX 4090")[2]["memory"]["gpu"] == {"name": "RTX 4090", "bytes": 24 * 10**9}


def test_data_that_is_missing_or_lacks_what_a_stage_needs_is_refused(ask, tmp_path):
    status, text, _ = ask("--data", f"folder:{tmp_path / 'nowhere'}")
    assert status == 1 and "problem, data: " in text and "nowhere" in text and "records unknown" in text
    sets = "data.source=sets data.sets.a.layout=own data.sets.a.path=json:a.jsonl data.sets.b.layout=own"
    status, text, facts = ask("--set", *sets.split(), "data.sets.b.path=json:b.jsonl")
    assert [problem["about"] for problem in facts["problems"]] == ["data", "data"]


def test_records_epochs_and_captions_of_data_sets_are_counted(ask, tmp_path):
    picture = REPOSITORY / "docs/assets/scene.png"
    rows = [{"file_name": str(picture), "text": text} for text in ("a red circle", "", "a circle")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [
        "data.source=sets",
        "data.sets.album.layout=own",
        f"data.sets.album.path=json:{tmp_path}/rows.jsonl",
    ]
    wanted = ["--stage", "control", "--set", *sets, "data.sets.album.tasks=[control]"]
    status, text, _ = ask(*wanted)
    assert status == 1 and "1 of 3 rows have no caption or prompt" in text
    status, text, facts = ask(*wanted, "data.empty_captions=allow")
    assert (status, facts["problems"]) == (0, [])
    assert "album: records 3, no caption 1, left out none, licence unstated, stages control" in text
    assert (facts["stages"]["control"]["records"], facts["stages"]["control"]["epochs"]) == (3, 4.0)
    status, text, _ = ask("--stage", "editing", "--set", *sets, "data.empty_captions=allow")
    assert status == 1


def test_a_missing_base_pictures_of_a_wrong_size_and_a_full_disk_are_refused(ask, tmp_path, monkeypatch):
    status, text, _ = ask("--set", f"base.path={tmp_path}/nowhere")
    assert status == 1 and "problem, base: there is no FLUX base at" in text
    bare = REPOSITORY / "recipes/cologen/assets/shapes/flux_dev"
    status, text, facts = ask("--set", f"base.path={bare}", "pool.rank=128")
    assert status == 1 and "has no weights of transformer, vae, text_encoder" in text
    assert facts["parameters"]["all_experts"] == 3 * 89_653_248
    data = ["--data", f"folder:{tmp_path}", "--set", "data.size=[30,18]"]
    status, text, _ = ask(*data)
    assert status == 1 and "multiples of 4: --set data.size=[32,16]" in text
    monkeypatch.setattr("recipes.cologen.diagnosis.environment.free_disk", lambda folder: 1000)
    status, text, _ = ask()
    assert status == 1 and "problem, disk: checkpoints of this run need about" in text


def test_a_probe_takes_real_steps_and_tells_hours(ask, tmp_path):
    before = set(tmp_path.iterdir())
    status, text, facts = ask("--probe", "--stage", "grounding..control")
    assert status == 0 and list(facts["stages"]) == ["grounding", "control"]
    for stage in facts["stages"].values():
        assert stage["seconds_per_micro_batch"] > 0
        assert stage["hours"] == pytest.approx(stage["steps"] * stage["seconds_per_micro_batch"] / 3600)
    assert "hours are not guessed" not in text
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"config.yaml", "answer.json"}
    status, text, _ = ask("--probe", "--processes", "3")
    assert status == 1 and "not probed, since the run would not work" in text


def test_wrong_questions_are_refused_in_a_line(ask, capsys):
    assert doctor.main(["--config", "tiny", "--gpu", "abacus"]) == 1
    assert "there is no GPU 'abacus'" in capsys.readouterr().err
    assert doctor.main(["--config", "tiny", "--stage", "nothing"]) == 1
    assert "there is no stage 'nothing'" in capsys.readouterr().err
