"""The command: what it finds, what it refuses and with which setting to change, what a probe measures."""

import io
import json
import shutil
from importlib.metadata import version

import pytest
from PIL import Image
from rich.console import Console

from recipes.cologen import doctor, train
from recipes.cologen.config.run import REPOSITORY
from recipes.cologen.diagnosis.data import _annotators
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


def test_a_base_that_is_not_here_leaves_checks_undone_and_that_is_no_success(ask, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": "a red circle"} for number in range(12)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    there = ["--data", f"folder:{folder}", "--set", "validation.samples=0", "data.size=[32,32]"]
    status, text, facts = ask(*there, "--stage", "control")
    assert (status, facts["unchecked"]) == (0, []), text
    elsewhere = [*there, "base.path=black-forest-labs/FLUX.2-klein-base-4B"]
    status, text, facts = ask(*elsewhere, "--stage", "control", "--gpu", "H100")
    assert (status, facts["problems"]) == (doctor.NOT_ALL_CHECKED, [])
    assert [one["about"] for one in facts["unchecked"]] == ["base", "prompts", "picture size", "memory"]
    assert all("fetch" in one["how"] for one in facts["unchecked"])
    assert "not checked, base: whether its files are whole" in text
    assert "hf download black-forest-labs/FLUX.2-klein-base-4B" in text
    assert text.endswith("would keep this run from working, but 4 things could not be checked\n")
    # What needs no base is looked at all the same: photographs with captions alone serve no grounding.
    status, text, facts = ask(*elsewhere, "--stage", "grounding")
    assert status == 1 and facts["problems"][0]["about"] == "data" and "the data cannot be trained on" in text
    # Of a published base the shape is known: what that tells is checked.
    published = [*there, "base.path=black-forest-labs/FLUX.1-dev", "data.size=[40,32]"]
    status, text, facts = ask(*published, "--stage", "control", "--gpu", "H100")
    assert status == 1 and "sides that are multiples of 16" in text
    assert [one["about"] for one in facts["unchecked"]] == ["base", "prompts", "memory"]


def test_pictures_of_data_that_cannot_be_opened_are_not_said_to_be_good(ask, tmp_path):
    status, text, facts = ask("--data", f"folder:{tmp_path / 'nowhere'}")
    assert status == 1 and "not checked, data: " in text
    assert "1 problem would keep this run from working, and 2 things could not be checked" in text
    assert [one["about"] for one in facts["unchecked"]] == ["data", "memory"]


def test_files_of_a_base_that_are_pointers_or_missing_shards_are_found(ask, base_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_path, base)
    index = {"weight_map": {"a": "lost-1.safetensors", "b": "diffusion_pytorch_model.safetensors"}}
    (base / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    status, text, _ = ask("--set", f"base.path={base}")
    assert status == 1 and "transformer/lost-1.safetensors, which the index" in text
    weights = base / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    status, text, _ = ask("--set", f"base.path={base}")
    assert status == 1 and "is a pointer of git-lfs" in text
    status, text, _ = ask("--set", "base.revision=main")
    assert status == 1 and "has no revisions" in text


def test_what_this_machine_lacks_is_a_problem_and_of_another_machine_it_is_not_known(ask, monkeypatch):
    asked = ["--set", "machine.attention=flash", "optimizer.name=adamw_8bit", "machine.compile=true"]
    wrong = [*asked, "machine.compile_backend=fastest"]
    status, text, facts = ask(*wrong)
    assert (status, facts["problems"]) == (doctor.NOT_ALL_CHECKED, []), "the run may be meant for another one"
    assert {one["about"] for one in facts["unchecked"]} == {"machine"}
    assert "machine.attention=flash cannot be used" in text and "'fastest'" in text
    with monkeypatch.context() as machine:
        machine.setattr(doctor, "gpu_bytes", lambda: 10**11)
        for answer in (ask(*wrong, "--probe"), ask(*wrong)):
            assert answer[0] == 1 and {one["about"] for one in answer[2]["problems"]} == {"machine"}
    status, text, facts = ask(*wrong, "--probe")
    assert status == 1 and {problem["about"] for problem in facts["problems"]} == {"machine"}
    assert "machine.attention=flash cannot be used" in text and "'fastest'" in text
    status, text, facts = ask(*asked, "--gpu", "H100")
    assert (status, facts["problems"]) == (doctor.NOT_ALL_CHECKED, [])
    (one,) = facts["unchecked"]
    assert (
        one["about"] == "machine"
        and "machine.attention=flash, machine.compile_backend=inductor" in one["why"]
    )


def test_without_a_gpu_the_memory_of_the_machine_itself_is_what_there_is(ask, monkeypatch):
    monkeypatch.setattr("recipes.cologen.diagnosis.diagnose.host_bytes", lambda: 10**9)
    status, text, facts = ask()
    assert (status, facts["problems"]) == (doctor.NOT_ALL_CHECKED, [])
    assert [one["about"] for one in facts["unchecked"]] == ["memory"]
    assert "this machine has no GPU, and 1.0 GB of its own memory" in text
    status, text, facts = ask("--probe")
    assert status == 1 and [problem["about"] for problem in facts["problems"]] == ["memory"]
    assert ask("--gpu-memory", "24GB")[0] == 0


def test_annotators_of_replayed_and_validated_tasks_are_loaded_too(base_path, tmp_path):
    lost = f"data.annotators={{depth: {{kind: transformers, path: {tmp_path / 'lost'}}}}}"
    row = {"steps": 1, "batch_size": 4, "lr": 1e-2, "rho": 0.8, "alpha": 0.5, "init": "zero"}
    stages = {"control": row, "editing": {**row, "replay": {"control": 0.5}}}
    plain = {"control": row, "editing": row}

    def lacking(of_stages, *overrides):
        there = [
            "data.size=[16,16]",
            f"data.source=folder:{tmp_path}",
            lost,
            f"stages={json.dumps(of_stages)}",
            *overrides,
        ]
        return len(_annotators(make_config(base_path, *there), ["editing"])[1])

    held_out = f"data.held_out=folder:{tmp_path / 'other'}"
    assert lacking(plain) == lacking(plain, held_out) == 0
    assert lacking(stages) == lacking(plain, held_out, "validation.tasks=seen") == 1


def test_a_distilled_base_is_warned_of_and_works(ask):
    status, text, facts = ask("--set", "base.path=black-forest-labs/FLUX.1-schnell", "--gpu", "H200")
    assert status == doctor.NOT_ALL_CHECKED and len(facts["warnings"]) == 1
    assert "warning: the base FLUX.1-schnell is distilled to about four steps" in text
    assert ask()[2]["warnings"] == []


def test_exit_statuses_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "3, nothing was found, but not all could be checked" in said


def test_wrong_questions_are_refused_in_a_line(ask, capsys):
    assert doctor.main(["--config", "tiny", "--gpu", "abacus"]) == 1
    assert "there is no GPU 'abacus'" in capsys.readouterr().err
    assert doctor.main(["--config", "tiny", "--stage", "nothing"]) == 1
    assert "there is no stage 'nothing'" in capsys.readouterr().err
