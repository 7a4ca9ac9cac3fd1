"""Runs with caches, empty, full or filled ahead, end with the very bits of a run without."""

import pytest

from recipes.cologen import cache, train
from recipes.cologen.config.errors import ConfigError
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.record import ALL_FIXED
from recipes.cologen.data.seeding import derive_seed
from recipes.cologen.data.views import VIEWS
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.training.input.batches import keys_of
from recipes.cologen.training.input.filling import fixed_examples
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_on_files import config, write_folder

TASKS = tuple(VIEWS)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "data").mkdir()
    return write_folder(tmp_path / "data")


@pytest.fixture
def command(base_path, files, tmp_path, monkeypatch):
    """Runs the training command on the files; gives the bytes of the last pool."""
    monkeypatch.setattr(train, "build_report", lambda output, announce: output / "report/index.html")
    settings = config(base_path, files, "dropout.text=0.3", "dropout.source=0.3")
    (tmp_path / "run.yaml").write_text(settings.to_yaml())

    def run(name, *overrides):
        arguments = ["--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / name)]
        assert train.main([*arguments, *(["--set", *overrides] if overrides else [])]) == 0
        pool = tmp_path / name / "checkpoints/editing/prw/adapter_model.safetensors"
        return pool.read_bytes()

    return run


def test_weights_are_bit_equal_without_with_an_empty_and_with_a_full_cache(command, tmp_path, capsys):
    plain = command("plain")
    folder = f"data.cache.folder={tmp_path / 'cache'}"
    assert command("cold", folder) == plain
    assert "entries, " in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(before) >= 2
    assert command("warm", folder) == plain
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == before


def test_a_cache_filled_ahead_leaves_nothing_to_encode(command, tmp_path, monkeypatch, capsys):
    plain = command("plain")
    arguments = ["--config", str(tmp_path / "run.yaml"), "--folder", str(tmp_path / "cache")]
    assert cache.main(arguments) == 0
    first = capsys.readouterr().out
    assert "editing: 6 of 6 records; " in first and "cache of latents: " in first
    assert cache.main(arguments) == 0
    assert "editing: 6 of 6 records; 0 encoded" in capsys.readouterr().out
    assert cache.main([*arguments, "--check"]) == 0
    assert "latents: 0 entries were damaged" in capsys.readouterr().out
    encoded = []
    original = FluxModel.encode_images
    monkeypatch.setattr(
        FluxModel,
        "encode_images",
        lambda model, pixels: encoded.append(len(pixels)) or original(model, pixels),
    )
    monkeypatch.setattr(
        FluxModel, "encode_prompts", lambda model, prompts: pytest.fail("a prompt was encoded")
    )
    assert command("warm", f"data.cache.folder={tmp_path / 'cache'}") == plain
    # Holes depend on a seed: the sources of inpainting's two steps are all that is left.
    assert 0 < sum(encoded) <= 4


def test_only_the_stages_that_are_asked_for_are_kept(command, tmp_path):
    folder = f"data.cache.folder={tmp_path / 'cache'}"
    command("run", folder, "data.cache.stages=[]")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    command("more", folder, "data.cache.stages=[editing]", "data.cache.text=false")
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if list(path.iterdir())] == [
        "latents"
    ]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_said_to_be_fixed_is_the_same_for_every_seed(task, base_path, files):
    records = training_records(config(base_path, files).data).stage(task).records
    for index in range(3):
        record = records.record(index)
        filled = fixed_examples(record, task)
        allowed = {part: set() for part in ALL_FIXED}
        for keys in (keys_of([one]) for one in filled):
            allowed["source"] |= {keys.source}
            allowed["target"] |= {keys.target}
            allowed["prompt"] |= {keys.prompts}
        for seed in range(12):
            example = VIEWS[task](record, derive_seed(seed))
            keys = keys_of([example])
            assert example.fixed == filled[0].fixed
            assert keys.source in allowed["source"]
            assert keys.target in allowed["target"]
            assert keys.prompts in allowed["prompt"]


def test_a_cache_is_no_part_of_what_a_run_is(base_path, files):
    plain = config(base_path, files)
    kept = config(base_path, files, "data.cache.folder=/tmp/x", "machine.encode_batch=1")
    assert plain.fingerprint() == kept.fingerprint()


def test_the_endless_world_has_no_cache(base_path):
    with pytest.raises(ConfigError, match="the world's are endless"):
        make_config(base_path, "data.cache.folder=/tmp/x")


def test_filling_without_a_folder_is_refused(base_path, files, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(config(base_path, files).to_yaml())
    assert cache.main(["--config", str(tmp_path / "run.yaml")]) == 1
    assert "data.cache.folder" in capsys.readouterr().err


def test_broken_records_are_left_out_and_named(command, tmp_path, capsys):
    whole = (tmp_path / "data/2-image.png").read_bytes()
    (tmp_path / "data/2-image.png").write_bytes(whole[: len(whole) // 2])
    arguments = ["--config", str(tmp_path / "run.yaml"), "--folder", str(tmp_path / "cache")]
    assert cache.main([*arguments, "--stage", "editing"]) == 0
    assert "left out: mine/metadata.jsonl/2" in capsys.readouterr().out
