"""Settings are read, overridden, refused and written as the docstrings of config.py say."""

import pytest
import yaml

from recipes.cologen.config.run import CONFIGS, REPOSITORY, ConfigError, load_config, parse_config
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


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("pool.rnk", r"Did you mean pool\.rank"),
        ("pool.rankk", r"Did you mean pool\.rank"),
        ("optimizer.lr", r"Did you mean stages\.\w+\.lr"),
        ("stages.control.stepz", r"Did you mean stages\.control\.steps"),
        ("validaton.every", r"Did you mean validation"),
        ("stages.control.qqqqqqqq", r"stages\.control knows steps, batch_size"),
        ("qqqqqqqq", r"The config knows name, base"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(key, hint):
    with pytest.raises(ConfigError, match=rf"with --set {key}=3:\n.*unknown setting.*{hint}"):
        parse_config(MINIMAL, [f"{key}=3"])


def test_an_unknown_key_in_a_file_is_refused_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nbase: {path: y, dtyp: float32}\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml.*\n.*base\.dtyp: unknown setting. Did you mean base\.dtype"
    ):
        load_config(file)


def test_an_unknown_stage_is_refused_in_file_and_override():
    with pytest.raises(UnknownStageError, match=r"'edit'.*Did you mean 'editing'"):
        parse_config({**MINIMAL, "stages": {"edit": {}}})
    with pytest.raises(UnknownStageError, match="Did you mean 'control'"):
        parse_config(MINIMAL, ["stages.controll.lr=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.rank=-1", r"pool\.rank: expected 1 or more, got -1"),
        ("stages.control.lr=0", r"stages\.control\.lr: expected more than 0"),
        ("stages.control.lr=.nan", r"stages\.control\.lr: .*finite"),
        ("stages.grounding.rho=1.5", r"stages\.grounding\.rho: expected 1\.0 or less"),
        ("stages.control.init=editing", r"'editing'; expected 'zero', 'previous' or an earlier stage"),
        ("data.held_out_seed=0", r"validation would show what is trained on"),
        ("data.source=photos", r"expected 'world' or 'folder:PATH'"),
        ("pool.rank.x=1", r"pool\.rank is a value, not a group"),
        ("pool.rank", r"expects KEY=VALUE"),
        ("pool.rank=[1", r"not YAML"),
        ("pool={rank: 1, rank: 2}", r"'rank' is given twice"),
        ("data.size=[32, 48]", r"data\.size is for pictures from elsewhere"),
        ("base=3", r"base: "),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(override, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**MINIMAL, "pool": {"rank": 8}}, [override])


def test_a_missing_value_says_how_to_give_it():
    with pytest.raises(ConfigError, match=r"base\.path: missing.*--set base\.path=VALUE"):
        parse_config({"name": "x", "base": {}})


def test_the_size_of_pictures_is_that_of_a_folder_and_positive():
    folder = ["data.source=folder:a", "data.size=[32, 48]"]
    assert parse_config(MINIMAL, folder).data.size == (32, 48)
    held_out = ["data.held_out=folder:a", "data.size=[32, 48]"]
    assert parse_config(MINIMAL, held_out).data.size == (32, 48)
    for wrong in ("[0, 48]", "[32, -1]"):
        with pytest.raises(ConfigError, match=r"data\.size\.\d: expected more than 0"):
            parse_config(MINIMAL, [folder[0], f"data.size={wrong}"])


def test_a_folder_is_not_trained_on_and_held_out():
    with pytest.raises(ConfigError, match="held_out is the folder that is trained on"):
        parse_config(MINIMAL, ["data.source=folder:a", "data.held_out=folder:a"])


def test_a_missing_config_lists_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no config 'tinny'.*tiny"):
        load_config("tinny")
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "absent.yaml")


BROKEN = [
    b"- a\n- b\n",
    b"name: [\n",
    b"stages: 3\n",
    b"stages: {control: 3}\n",
    b"name: x\n5: y\n",
    "name: Grün\n".encode("latin-1"),
    b"name: x\npool: {rank: 1}\nname: y\n",
    b"name: x\npool:\n  rank: 1\n  alpha: 2\n  rank: 3\n",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(file)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("name: x\nbase: {path: y}\nstages:\n  control: {lr: 1}\n  control: {lr: 2}\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml(.|\n)*'control' is given twice(.|\n)*line 5"):
        load_config(file)


def test_yaml_that_merges_a_mapping_may_override_its_keys(tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text(
        "name: x\nbase: {path: y}\nstages:\n  inpainting: &first {steps: 5, lr: 1}\n"
        "  control: {<<: *first, steps: 7}\n"
    )
    assert load_config(file).stages["control"].steps == 7


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.sets.mine.layot=own"],
            r"data\.sets\.mine\.layot: unknown setting\. Did you mean data\.sets\.mine\.layout",
        ),
        (["data.sets.mine.path=photos"], r"data\.sets\.mine: .*expected one of parquet:\.\.\., arrow"),
        (["data.sets.mine.tasks=[edit]"], r"data\.sets\.mine: .*tasks names edit; expected inpainting"),
        (["data.source=world"], r"data\.sets names mine, but data\.source is 'world'"),
        (["data.held_out=sets"], r"data\.held_out is 'sets', but data\.held_out_sets names none"),
    ],
)
def test_wrong_data_sets_are_refused_with_their_key(overrides, message):
    sets = ["data.source=sets", "data.sets.mine.layout=own", "data.sets.mine.path=tar:a.tar"]
    assert parse_config(MINIMAL, sets).data.sets["mine"].repeat == 1
    with pytest.raises(ConfigError, match=message):
        parse_config(MINIMAL, [*sets, *overrides])


def test_held_out_sets_are_not_those_that_are_trained_on():
    data = "{source: sets, held_out: sets, sets: &a {x: {layout: own, path: 'tar:a'}}, held_out_sets: *a}"
    with pytest.raises(ConfigError, match="held_out_sets are the sets that are trained on"):
        parse_config(MINIMAL, [f"data={data}"])
