"""The doctor says what a cache that is asked for will not keep."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from recipes.cologen import doctor
from tests.recipes.cologen.annotator_folders import save_depth_anything
from tests.recipes.cologen.training.conftest import base_path
from tests.recipes.cologen.training.test_on_files import arrow_cache, config, write_folder

__all__ = ["arrow_cache", "base_path"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("data.cache.latents=true", True),
        ("data.cache.latents=false", False),
        ("data.cache.stages=[editing]", False),
        ("data.cache.stages=[control]", True),
        ("data.cache.stages=[]", False),
        ("data.annotators={canny: {kind: opencv}}", False),
        ("data.cache.folder=null", False),
    ],
)
def test_maps_that_networks_draw_are_named_where_a_cache_would_keep_control(
    changed, told, base_path, tmp_path
):
    (tmp_path / "data").mkdir()
    save_depth_anything(tmp_path / "depth")
    depth = f"data.annotators={{depth: {{kind: transformers, path: {tmp_path / 'depth'}}}}}"
    cache = f"data.cache.folder={tmp_path / 'cache'}"
    asked = config(base_path, write_folder(tmp_path / "data"), depth, cache, changed)
    (tmp_path / "run.yaml").write_text(asked.to_yaml())
    said = io.StringIO()
    given = ["--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]
    assert doctor.main(given, Console(file=said, width=200)) == 0, said.getvalue()
    text = " ".join(said.getvalue().split())
    assert ("does not keep control maps that networks make (depth)" in text) == told


def test_depth_without_a_value_is_counted_as_training_counts_it(base_path, tmp_path):
    path, folder = write_folder(tmp_path), tmp_path
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        with Image.open(folder / line["file_name"]) as picture:
            depth = np.linspace(0, 1, picture.width * picture.height, dtype=np.float32)
            depth[:3] = np.nan
            Image.fromarray(depth.reshape(picture.height, picture.width)).save(folder / f"d{number}.tiff")
        line["depth"] = f"d{number}.tiff"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.yaml").write_text(config(base_path, path).to_yaml())
    said = io.StringIO()
    given = ["--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]
    doctor.main(given, Console(file=said, width=200))
    text = " ".join(said.getvalue().split())
    assert f"note: depth: {len(lines)} of {len(lines)} records looked at have {3 * len(lines)} pixels" in text
