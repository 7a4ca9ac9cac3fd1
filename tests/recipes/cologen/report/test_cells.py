"""Cells are measured once, kept whole, and measured anew only when something they depend on has changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from recipes.cologen.data.record import Example
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.world import World
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.report import cells
from recipes.cologen.report.cells import Cell, Scorer, hash_examples, hash_files, open_scorer, shown_examples
from recipes.cologen.training.validation import scores as validation

OWN = Cell("grounding", "grounding", "full_pool")
FINAL = Cell("control", "grounding", "as_of")
FULL = Cell("control", "grounding", "full_pool")
OFF = Cell("base", "grounding", "experts_off")


@pytest.fixture
def told() -> list[str]:
    """What the scorer says: a line for every cell that it measures."""
    return []


@pytest.fixture
def scorer(run: Path, told: list[str]) -> Scorer:
    return open_scorer(run, n=3, announce=told.append)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "report" / "cells").iterdir()}


def test_a_kept_cell_is_not_measured_again(run: Path, scorer: Scorer, told: list[str]) -> None:
    first = scorer.measure([OWN, OFF, OWN])
    assert len(told) == 2
    kept = files(run)
    assert open_scorer(run, n=3, announce=told.append).measure([OWN, OFF]) == first
    assert len(told) == 2 and files(run) == kept


def test_an_interrupted_evaluation_goes_on_where_it_was(
    run: Path, scorer: Scorer, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, evaluate = [OFF, OWN, FULL], cells.evaluate_task

    def interrupted(*arguments: object, **settings: object) -> object:
        if len(told) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(cells, "evaluate_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scorer.measure(whole)
    assert len(told) == 2 and len([name for name in files(run) if name.endswith(".json")]) == 2
    assert not getattr(scorer.model.transformer, "peft_config", None)  # the pool was taken out all the same
    monkeypatch.setattr(cells, "evaluate_task", evaluate)
    assert list(scorer.measure(whole)) == whole
    assert [line.split(":")[0] for line in told] == [cell.name for cell in whole]


def test_as_of_draws_what_the_stage_itself_drew_and_the_full_pool_does_not(run: Path, scorer: Scorer) -> None:
    measured = scorer.measure([OWN, FINAL, FULL, OFF])
    pictures = {cell: np.stack(scorer.shown(cell)) for cell in measured}
    assert np.array_equal(pictures[OWN], pictures[FINAL])
    assert not np.array_equal(pictures[OWN], pictures[FULL])
    assert not np.array_equal(pictures[OWN], pictures[OFF])
    assert measured[OWN].usage == measured[FINAL].usage
    assert measured[OWN].experts == ("inpainting", "grounding")
    assert measured[FULL].experts == ("inpainting", "grounding", "control")
    assert measured[OFF].experts == ()


def test_changed_weights_or_numbers_are_measured_anew(run: Path, scorer: Scorer, told: list[str]) -> None:
    scorer.measure([OWN])
    assert open_scorer(run, n=2).cached(OWN) is None
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("held_out_seed: 1000003", "held_out_seed: 8"))
    assert open_scorer(run, n=3).cached(OWN) is None
    (run / "config.yaml").write_text(config)
    assert open_scorer(run, n=3).cached(OWN) is not None
    weights = run / "checkpoints" / "grounding" / "prw" / "adapter_model.safetensors"
    weights.write_bytes((run / "checkpoints" / "control" / "prw" / "adapter_model.safetensors").read_bytes())
    assert open_scorer(run, n=3).cached(OWN) is None


def test_changed_examples_are_measured_anew(
    run: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.measure([OWN, OFF])
    assert scorer.cached(OWN) is not None
    view = VIEWS["grounding"]
    monkeypatch.setitem(
        VIEWS, "grounding", lambda record, seed: replace(view(record, seed), prompt="another")
    )
    changed = open_scorer(run, n=3)
    assert changed.cached(OWN) is None and changed.cached(OFF) is None
    monkeypatch.setitem(VIEWS, "grounding", view)
    assert open_scorer(run, n=3).cached(OWN) is not None


def test_a_changed_file_of_a_held_out_folder_is_measured_anew(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}')
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("held_out: null", f"held_out: folder:{folder}"))
    cell = Cell("base", "control", "experts_off")
    open_scorer(run, n=2).measure([cell])
    assert open_scorer(run, n=2).cached(cell) is not None
    Image.fromarray(np.full((16, 16, 3), 91, np.uint8)).save(folder / "a.png")
    assert open_scorer(run, n=2).cached(cell) is None


def test_a_hash_of_examples_follows_all_that_decides_a_score() -> None:
    pixels, hole = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.bool_)
    scene = World(0).record(0).scene
    first = Example("a", "editing", "move", pixels, pixels, "move it", {"scene": scene})
    others = [
        replace(first, kind="add"),
        replace(first, prompt="add it"),
        replace(first, source=pixels + np.uint8(1)),
        replace(first, target=pixels + np.uint8(1)),
        replace(first, target=pixels.reshape(3, 2, 3)),
        replace(first, meta={"scene": World(0).record(1).scene}),
        replace(first, meta={"scene": scene, "alternatives": (scene,)}),
        replace(first, meta={"scene": scene, "hole": hole}),
    ]
    assert hash_examples([first]) == hash_examples([replace(first, source=pixels.copy())])
    hashes = {hash_examples([example]) for example in [first, *others]} | {hash_examples([first, first])}
    assert len(hashes) == len(others) + 2


@pytest.mark.parametrize(("setting", "largest"), [("null", 3), ("2", 2)])
def test_no_more_pictures_at_once_than_the_runs_machine_takes(
    run: Path, setting: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("micro_batch: null", f"micro_batch: {setting}"))
    generate, sizes = validation.generate, []

    def noting(model: FluxModel, prompts: list[str], *arguments: Any, **settings: Any) -> Tensor:
        sizes.append(len(prompts))
        return generate(model, prompts, *arguments, **settings)

    monkeypatch.setattr(validation, "generate", noting)
    open_scorer(run, n=3).measure([OFF])
    assert max(sizes) == largest and sum(sizes) == 3


def test_a_kept_cell_of_another_version_is_measured_anew(run: Path, scorer: Scorer) -> None:
    scorer.measure([OFF])
    (path,) = (run / "report" / "cells").glob("*.json")
    path.write_text('{"score": 1.0}')
    assert scorer.cached(OFF) is None


def test_the_base_is_left_without_a_pool(scorer: Scorer) -> None:
    before = [type(module) for module in scorer.model.transformer.modules()]
    scorer.measure([OWN, FULL])
    assert [type(module) for module in scorer.model.transformer.modules()] == before


@given(kinds=st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), count=st.integers(1, 12))
def test_shown_examples_cover_every_kind_evenly(kinds: list[str], count: int) -> None:
    shown = shown_examples(kinds, count)
    assert shown == sorted(set(shown)) and len(shown) == min(count, len(kinds))
    assert len({kinds[number] for number in shown}) == min(count, len(set(kinds)))
    for kind in set(kinds):  # of each kind the first ones
        numbers = [number for number, other in enumerate(kinds) if other == kind]
        of_kind = [number for number in shown if kinds[number] == kind]
        assert of_kind == numbers[: len(of_kind)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_hash_follows_names_and_contents(tmp_path: Path, whole: bool) -> None:
    (tmp_path / "a").write_bytes(b"one")
    first = hash_files(tmp_path, whole=whole)
    assert hash_files(tmp_path, whole=whole) == first
    (tmp_path / "a").write_bytes(b"two!")
    second = hash_files(tmp_path, whole=whole)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, hash_files(tmp_path, whole=whole)}) == 3
