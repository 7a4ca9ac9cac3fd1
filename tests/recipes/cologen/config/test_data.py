"""Settings of data that contradict each other are refused with their key."""

import pytest

from recipes.cologen.config.run import ConfigError, parse_config

MINIMAL = {"name": "minimal", "base": {"path": "somewhere"}}


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
