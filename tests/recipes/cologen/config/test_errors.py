"""What is wrong with settings is said with the key, the nearest one, and the fix."""

import pytest

from recipes.cologen.config.run import ConfigError, load_config, parse_config

MINIMAL = {"name": "minimal", "base": {"path": "somewhere"}}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("pool.rnk", r"Did you mean pool\.rank"),
        ("pool.rankk", r"Did you mean pool\.rank"),
        ("optimizer.lr", r"Did you mean stages\.\w+\.lr"),
        ("stages.control.stepz", r"Did you mean stages\.control\.steps"),
        ("validaton.every", r"Did you mean validation"),
        ("stages.control.qqqqqqqq", r"settings of stages\.control are steps, batch_size"),
        ("qqqqqqqq", r"settings are name, base"),
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
