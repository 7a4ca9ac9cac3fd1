"""Stages as plain values and as a file."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import prw
from tests.prw.curriculum.courses import curriculum

STAGES = st.builds(
    prw.Stage,
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8).filter("zero".__ne__),
    rho=st.floats(0, 1),
    alpha=st.floats(0, 10),
    steps=st.integers(1, 10**6),
    lr=st.floats(1e-9, 1),
)


@settings(max_examples=25)
@given(stages=st.lists(STAGES, min_size=1, max_size=4, unique_by=lambda one: one.name))
def test_data_and_file_give_the_same_stages_back(stages, tmp_path_factory):
    made = prw.Curriculum(stages)
    file = tmp_path_factory.mktemp("curriculum") / "new" / "stages.json"
    made.save(file)
    forms = [
        prw.Curriculum.load(file),
        prw.Curriculum.from_dict(made.to_dict()),
        prw.Curriculum.from_dict(yaml.safe_load(yaml.safe_dump(made.to_dict()))),
    ]
    assert all(tuple(form) == tuple(made) for form in forms)
    assert [path.name for path in file.parent.iterdir()] == ["stages.json"]


def test_what_holds_no_stages_is_refused(tmp_path):
    good = curriculum().to_dict()["stages"]
    for values, message in (
        ([], "got list"),
        ({"stage": []}, "got stage"),
        ({"stages": {}}, "got stages"),
        ({"stages": [3]}, "stage 0 is a int"),
        (
            {"stages": [*good, {"name": "x", "rank": 3}]},
            "stage 3 .x.*missing rho, alpha, steps, lr, unknown rank",
        ),
        ({"stages": []}, "at least one stage"),
    ):
        with pytest.raises(prw.CurriculumError, match=message):
            prw.Curriculum.from_dict(values)
    with pytest.raises(prw.ConfigError, match="rho"):
        prw.Curriculum.from_dict({"stages": [{**good[0], "rho": 80}]})
    (tmp_path / "cut.json").write_text('{"stages": [')
    for file in (tmp_path / "cut.json", tmp_path / "missing.json"):
        with pytest.raises(prw.StorageError, match=file.name):
            prw.Curriculum.load(file)
