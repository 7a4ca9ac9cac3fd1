"""The flux2_klein config on random weights in klein's layout: written, trained and drawn by the commands."""

import json
import re

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from recipes.cologen import generate, train
from recipes.cologen.tools import random_weights

SMALL = [
    "base.path=runs/random_klein/base",
    "base.max_text_tokens=128",
    "data.size=[32,48]",
    "data.sets={mine: {layout: own, path: 'parquet:runs/random_klein/data/pictures.parquet'}}",
    "data.held_out=sets",
    "data.held_out_sets={other: {layout: own, path: 'folder:runs/random_klein/data/held_out'}}",
    "pool.rank=4",
    "stages.*.steps=2",
    "stages.*.batch_size=2",
    "machine.micro_batch=1",
    "machine.workers=0",
    "validation.every=2",
    "validation.samples=1",
    "sampling.steps=2",
]
"""What makes the config fit for random weights and a CPU."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """Two stages, trained by the real command in a folder like the repository's."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "arrow")
        assert random_weights.main(["--klein", "--pictures", "4", "--output", "runs/random_klein"]) == 0
        command = ["--config", "flux2_klein", "--output", "runs/klein", "--stage", "..grounding"]
        assert train.main([*command, "--set", *SMALL]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / "runs/klein"


def test_two_stages_train_and_only_the_newest_expert_changes(run) -> None:
    ledger = json.loads((run / "ledger.json").read_text())
    assert {name: stage["status"] for name, stage in ledger["stages"].items()} == {
        "inpainting": "finished",
        "grounding": "finished",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses and all(np.isfinite(losses))
    assert {row["stage"] for row in rows if row["kind"] == "validation"} == {"inpainting", "grounding"}
    first, second = (
        load_file(run / "checkpoints" / stage / "prw/adapter_model.safetensors")
        for stage in ("inpainting", "grounding")
    )
    assert all(torch.equal(second[name], value) for name, value in first.items())
    trained = {name for name, value in second.items() if re.search(r"prw_B[kv]?1\.", name) and value.any()}
    places = {name.split(".attn.")[0].split("model.")[-1] for name in trained}
    assert places == {"transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1"}
    assert len(trained) == 2 * 3  # keys and values of each block, the fused ones too
    assert {value.dtype for value in second.values()} == {torch.float32}


def test_a_picture_is_drawn_at_the_size_of_training(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save("in.png")
    asked = ["--checkpoint", "runs/klein", "--task", "grounding", "--image", "in.png", "--native"]
    assert generate.main([*asked, "--prompt", "the dog", "--output", "out.png"]) == 0
    with Image.open("out.png") as drawn:
        assert drawn.size == (48, 32)
    assert generate.main([*asked, "--prompt", "x" * 200, "--output", "long.png"]) == 1


def test_a_base_of_one_family_is_not_written_over_one_of_the_other(tmp_path, capsys):
    asked = ["--pictures", "4", "--output", str(tmp_path)]
    assert random_weights.main(asked) == 0
    index = (tmp_path / "base/model_index.json").read_bytes()
    assert random_weights.main([*asked, "--klein"]) == 1
    assert "holds a base of FLUX.1" in capsys.readouterr().err
    assert (tmp_path / "base/model_index.json").read_bytes() == index
    assert random_weights.main(asked) == 0
