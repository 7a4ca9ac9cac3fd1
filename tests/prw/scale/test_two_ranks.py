"""Two processes train what one does, under DDP and FSDP2, and save the same file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.prw.scale.two_ranks import STEPS, build, loss_of, optimiser

ROOT = Path(__file__).resolve().parents[3]
FILE = "adapter_model.safetensors"


class Run(NamedTuple):
    """What two processes left: their folder, and what each found."""

    folder: Path
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of both processes, for all tests; starting them is what takes the time."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "tests.prw.scale.two_ranks"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return Run(folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same steps in this process: the mean of both ranks' losses."""
    folder = tmp_path_factory.mktemp("one")
    model, weave = build()
    weave.save_pretrained(folder / "start")
    weave.export_lora("newest", folder / "lora")
    steps = optimiser(weave)
    for step in range(STEPS):
        torch.stack([loss_of(model, weave, rank, step)[0] for rank in range(2)]).mean().backward()
        steps.step()
        steps.zero_grad()
    weave.save_pretrained(folder / "trained")
    return folder


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_an_expert_nobody_picked_on_one_rank_hangs_nobody(two: Run, how: str) -> None:
    first = [rank[how]["shares"][0] for rank in two.ranks]
    assert first == [1.0, 0.0]
    assert all(len(rank[how]["shares"]) == STEPS for rank in two.ranks)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_ranks_train_what_one_does(two: Run, one: Path, how: str) -> None:
    trained, start = load_file(one / "trained" / FILE), load_file(one / "start" / FILE)
    assert_close(load_file(two.folder / how / FILE), trained, rtol=1e-4, atol=1e-6)
    moved = {name for name in trained if not torch.equal(trained[name], start[name])}
    assert {name.rpartition(".prw_")[2] for name in moved} == {"A1.weight", "B1.weight", "gate1.weight"}


def test_split_weights_are_saved_as_the_very_file_of_one_process(two: Run, one: Path) -> None:
    for ours, theirs in (("fsdp2-start", "start"), ("fsdp2-lora", "lora")):
        for file in (FILE, "adapter_config.json"):
            assert (two.folder / ours / file).read_bytes() == (one / theirs / file).read_bytes()


def test_peft_saves_the_same_weights_from_the_whole_state(two: Run, one: Path) -> None:
    saved, expected = (load_file(folder / FILE) for folder in (two.folder / "fsdp2-peft", one / "start"))
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        if ".prw_A" not in name:  # A starts at random, and prw.inject draws in another order than PEFT
            assert torch.equal(weight, expected[name]), name


def test_split_weights_are_loaded_and_not_grown(two: Run) -> None:
    for rank in two.ranks:
        found = rank["fsdp2"]
        assert found["start differs"]
        assert found["loaded again"]
        assert "first, then call fully_shard" in found["refused"]
        assert found["experts"] == ["veteran", "newest"]
