"""`data.cache.stages` names stages of the run; what replay mixes in is kept, or not, as its own task's."""

import json

import pytest

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.training import step as step_module
from tests.recipes.cologen.training.test_on_files import ROW, arrow_cache, config, write_folder

__all__ = ["arrow_cache"]


def test_a_stage_that_the_run_does_not_have_is_refused(base_path):
    folder = "data.cache.folder=/tmp/x"
    config(base_path, "folder:x", folder, "data.cache.stages=[control,editing]")
    with pytest.raises(ConfigError, match=r"data\.cache\.stages names edting; expected .*control, editing"):
        config(base_path, "folder:x", folder, "data.cache.stages=[edting]")
    with pytest.raises(ConfigError, match="grounding"):  # CoLoGen has it, this run has not
        config(base_path, "folder:x", folder, "data.cache.stages=[grounding]")


@pytest.mark.parametrize("kept", ["control", "editing"])
def test_a_replayed_example_is_kept_with_its_own_task(kept, base_path, tmp_path, run, monkeypatch):
    (tmp_path / "data").mkdir()
    seen = []
    original = step_module.encode

    def watching(trained, batch):
        seen.extend(zip(batch.replayed, batch.keys.prompts or [None] * len(batch.ids), strict=True))
        return original(trained, batch)

    monkeypatch.setattr(step_module, "encode", watching)
    stages = {"control": {**ROW, "steps": 1}, "editing": {**ROW, "steps": 4, "replay": {"control": 0.5}}}
    asked = config(
        base_path,
        write_folder(tmp_path / "data"),
        "stages=" + json.dumps(stages),
        "data.size=[16,24]",
        "dropout.text=0",
        f"data.cache.folder={tmp_path / 'cache'}",
        f"data.cache.stages=[{kept}]",
    )
    run(asked, tmp_path / "run")
    of_editing = seen[2:]  # control's own step comes first
    replayed = {key is not None for was_replayed, key in of_editing if was_replayed}
    own = {key is not None for was_replayed, key in of_editing if not was_replayed}
    assert (own, replayed) == ({kept == "editing"}, {kept == "control"})
