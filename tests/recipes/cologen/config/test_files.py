"""Settings come from YAML in which every key is given once."""

import pytest

from recipes.cologen.config.run import ConfigError, load_config

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


def test_a_missing_config_lists_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no config 'tinny'.*tiny"):
        load_config("tinny")
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "absent.yaml")


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
