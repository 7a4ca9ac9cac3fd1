"""Bases that are distilled to few steps are told by their names or by what their folder says."""

import json
from pathlib import Path

import pytest

from recipes.cologen.config.run import parse_config
from recipes.cologen.flux.distilled import base_warnings, published_name


def warned(path: Path | str, folder: Path) -> list[str]:
    return list(base_warnings(parse_config({"name": "x", "base": {"path": str(path)}}), folder))


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("black-forest-labs/FLUX.1-schnell", "nowhere", "FLUX.1-schnell"),
        ("models/flux.1-SCHNELL", "nowhere", "FLUX.1-schnell"),
        ("x", "hub/models--black-forest-labs--FLUX.2-klein-4B/snapshots/1", "FLUX.2-klein-4B"),
        ("black-forest-labs/FLUX.2-klein-9B", "nowhere", "FLUX.2-klein-9B"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "nowhere", None),
        ("black-forest-labs/FLUX.1-dev", "nowhere", None),
        ("black-forest-labs/FLUX.1-Kontext-dev", "hub/models--black-forest-labs--FLUX.1-Kontext-dev", None),
    ],
)
def test_a_published_base_is_known_by_its_name(path: str, folder: str, name: str | None) -> None:
    assert published_name(path, Path(folder)) == name
    said = warned(path, Path(folder))
    assert [name in line and "Train on " in line for line in said] == ([True] if name else [])


@pytest.mark.parametrize(
    ("index", "distilled"),
    [
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, True),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": False}, False),
        ({"_class_name": "Flux2KleinKVPipeline"}, True),
        ({"_class_name": "FluxPipeline"}, False),
    ],
)
def test_a_folder_of_another_name_is_known_by_its_index(tmp_path: Path, index: dict, distilled: bool) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert len(warned(tmp_path, tmp_path)) == distilled
    (tmp_path / "model_index.json").write_text("broken")
    assert warned(tmp_path, tmp_path) == []  # who loads it says what is wrong
