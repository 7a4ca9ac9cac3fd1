"""What a run fixes for generation: every setting of a run is on one of two lists; the file beside a pool."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prw.errors import known_settings
from recipes.cologen.config.errors import GROUPS, ConfigError
from recipes.cologen.config.run import CONFIGS, RunConfig, load_config
from recipes.cologen.runs.generation import (
    GENERATION_FILE,
    NOT_REPEATED,
    REPEATED,
    GenerationSettings,
    generation_settings,
    read_generation,
    write_generation,
)

KEYS = tuple(known_settings(RunConfig, GROUPS))
GROUPS = {key.rpartition(".")[0] for key in KEYS} - {""}
LEAVES = [key for key in KEYS if key not in GROUPS]


def names_of(key: str) -> Iterator[str]:
    """A setting and the groups that it is in, the setting first."""
    while key:
        yield key
        key = key.rpartition(".")[0]


@pytest.mark.parametrize("key", LEAVES)
def test_every_setting_of_a_run_is_repeated_in_drawing_or_not(key: str) -> None:
    lists = [name for name in names_of(key) if name in REPEATED or name in NOT_REPEATED]
    assert len(lists) == 1, f"{key}: say in runs/generation.py whether a generated picture depends on it"


def test_the_lists_name_what_there_is() -> None:
    known = {name for key in KEYS for name in names_of(key)}
    assert set(REPEATED) | set(NOT_REPEATED) <= known
    assert set(REPEATED.values()) == set(GenerationSettings.model_fields)


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_what_is_repeated_comes_from_the_run(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    generation = generation_settings(config)
    assert generation.max_text_tokens == config.base.max_text_tokens
    assert generation.source_timestep == config.flow.source_timestep
    assert (generation.steps, generation.guidance, generation.shift) == (
        config.sampling.steps,
        config.sampling.guidance,
        config.sampling.shift,
    )
    write_generation(tmp_path, generation)
    assert read_generation(tmp_path) == generation


def test_schnell_is_drawn_at_the_length_that_it_is_trained_at() -> None:
    assert generation_settings(load_config("flux_schnell")).max_text_tokens == 256


def test_a_picture_gets_the_size_that_training_gave_its_shape() -> None:
    assert generation_settings(load_config("tiny")).size_of(300, 500) == (16, 16)
    folder = ["data.source=folder:x", "data.held_out=null"]
    one = generation_settings(load_config("tiny", [*folder, "data.size=[32,48]"]))
    assert one.size_of(500, 500) == (32, 48)
    several = generation_settings(load_config("tiny", [*folder, "data.buckets.sizes=[[32,32],[32,64]]"]))
    assert several.size_of(100, 190) == (32, 64) and several.size_of(190, 200) == (32, 32)
    assert generation_settings(load_config("tiny", folder)).size_of(100, 190) is None


def test_a_pool_without_the_file_says_nothing_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_generation(tmp_path) is None
    (tmp_path / GENERATION_FILE).write_text('{"max_text_tokens": 0}')
    with pytest.raises(ConfigError, match=rf"{GENERATION_FILE}:\n.*max_text_tokens: .* got 0"):
        read_generation(tmp_path)
