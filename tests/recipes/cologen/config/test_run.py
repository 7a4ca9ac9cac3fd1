"""Settings are read, overridden, refused and written as the docstrings of config/run.py say."""

import pytest
import yaml

from recipes.cologen.config.run import CONFIGS, REPOSITORY, load_config, parse_config
from recipes.cologen.stages import COLOGEN_STAGES, UnknownStageError

MINIMAL = {"name": "minimal", "base": {"path": "somewhere"}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_complete_and_reads_back(path):
    config = load_config(path.stem)
    assert parse_config(yaml.safe_load(config.to_yaml())) == config
    assert config.stage_names == tuple(COLOGEN_STAGES)


def test_a_config_without_stages_has_the_papers():
    assert parse_config(MINIMAL).stages == COLOGEN_STAGES


def test_a_stage_keeps_the_papers_value_where_none_is_given():
    config = parse_config({**MINIMAL, "stages": {"inpainting": None, "control": {"steps": 7}}})
    assert config.stage_names == ("inpainting", "control")
    assert config.stages["control"] == COLOGEN_STAGES["control"].model_copy(update={"steps": 7})


def test_overrides_reach_one_stage_all_stages_and_groups_that_the_file_leaves_out():
    config = parse_config(
        MINIMAL,
        ["stages.*.batch_size=32", "stages.control.lr=4e-3", "machine.workers=2", "pool={rank: 3}"],
    )
    assert {stage.batch_size for stage in config.stages.values()} == {32}
    assert config.stages["control"].lr == 4e-3
    assert config.stages["editing"].lr == 1e-4
    assert config.machine.workers == 2
    assert config.pool.rank == 3


def test_an_unknown_stage_is_refused_in_file_and_override():
    with pytest.raises(UnknownStageError, match=r"'edit'.*Did you mean 'editing'"):
        parse_config({**MINIMAL, "stages": {"edit": {}}})
    with pytest.raises(UnknownStageError, match="Did you mean 'control'"):
        parse_config(MINIMAL, ["stages.controll.lr=1"])


@pytest.mark.parametrize("name", [1, None, True])
def test_the_name_of_a_stage_that_is_no_text_is_refused(name):
    with pytest.raises(UnknownStageError, match=f"no stage '{name}'"):
        parse_config({**MINIMAL, "stages": {name: {}}})


def test_the_fingerprint_changes_with_what_is_learnt_and_with_nothing_else():
    before = parse_config(MINIMAL).fingerprint()
    free = [
        "machine.workers=3",
        "validation.every=1",
        "sampling.steps=2",
        "report.samples=3",
        "logging.every=7",
        "base.path=elsewhere",
        "data.held_out=folder:a",
        "data.held_out_seed=3",
    ]
    assert parse_config(MINIMAL, free).fingerprint() == before
    for override in ("pool.rank=3", "data.seed=1", "stages.editing.lr=1", "flow.source_timestep=zero"):
        assert parse_config(MINIMAL, [override]).fingerprint() != before


def test_a_relative_base_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config({**MINIMAL, "base": {"path": "recipes/cologen"}})
    assert config.base_path == REPOSITORY / "recipes/cologen"
    (tmp_path / "recipes/cologen").mkdir(parents=True)
    assert config.base_path.resolve() == (tmp_path / "recipes/cologen").resolve()
