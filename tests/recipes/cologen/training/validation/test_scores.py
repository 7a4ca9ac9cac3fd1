"""Scoring a task: the oracle's word on what the model drew, the same each time, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import prw
from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.record import Example, Pair, Record
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.data.world import World
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.training.validation import scores as validation
from recipes.cologen.training.validation.scores import evaluate_task, held_out_examples, to_pictures

HOW: dict[str, Any] = {"steps": 2, "seed": 3, "batch_size": 4, "source_timestep": "zero"}


def tiny(**shape: int) -> FluxModel:
    model = build_tiny_flux(
        VOCABULARY,
        **{"width": 32, "heads": 1, "double_blocks": 1, "single_blocks": 1, "text_width": 16, **shape},
    )
    # The output projection starts at zero, and a model that predicts nothing would hide what this file tests.
    torch.nn.init.normal_(
        model.transformer.proj_out.weight, std=0.3, generator=torch.Generator().manual_seed(0)
    )
    return model


def pool(model: FluxModel, *experts: str) -> prw.Weave:
    """A pool whose experts all do something."""
    weave = prw.inject(model.transformer, rank=2, experts=[])
    for expert in experts:
        weave.add_expert(expert)
        with torch.no_grad():
            for parameter in weave.trainable_parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(weave.experts)))
    return weave


def examples(task: str, count: int = 6) -> list[Example]:
    return held_out_examples(World(71), task, count, seed=5)


def painter(paint: Callable[[Example], np.ndarray], of: list[Example]) -> Callable[..., Tensor]:
    """Stands in for `generate`: draws what `paint` makes of the examples, in their order."""
    waiting = list(of)

    def generate(model: FluxModel, prompts: list[str], source: Tensor, **settings: Any) -> Tensor:
        batch = [waiting.pop(0) for _ in prompts]
        assert prompts == [example.prompt for example in batch]
        pixels = torch.from_numpy(np.stack([paint(example) for example in batch]))
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1.0

    return generate


@pytest.mark.parametrize("task", VIEWS)
def test_the_target_itself_is_right_and_noise_is_wrong(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny(), examples(task, 7)
    monkeypatch.setattr(validation, "generate", painter(lambda example: example.target, given))
    perfect = evaluate_task(model, None, given, **HOW)
    assert perfect.values == (1.0,) * 7 and perfect.score == 1.0 and perfect.exact
    assert perfect.by_kind == dict.fromkeys({example.kind for example in given}, 1.0)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(validation, "generate", painter(lambda example: noise, given))
    assert evaluate_task(model, None, given, **HOW).score == 0.0


def test_a_score_is_the_mean_over_examples_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    given = examples("editing", 12)
    right = {example.id for example in given[:5]}
    monkeypatch.setattr(
        validation,
        "generate",
        painter(lambda e: e.target if e.id in right else np.zeros_like(e.target), given),
    )
    result = evaluate_task(tiny(), None, given, **HOW)
    assert result.score == pytest.approx(5 / 12)
    counts = {kind: sum(example.kind == kind for example in given) for kind in result.by_kind}
    assert sum(result.by_kind[kind] * count for kind, count in counts.items()) == pytest.approx(5)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    model, given = tiny(), examples("control")
    weave = pool(model, "inpainting", "grounding")
    first, again = (evaluate_task(model, weave, given, **HOW) for _ in range(2))
    other = evaluate_task(model, weave, given, **{**HOW, "seed": 4})
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True))
    assert first.values == again.values and torch.equal(first.usage, again.usage)
    assert not all(np.array_equal(a, b) for a, b in zip(first.images, other.images, strict=True))


def test_batches_do_not_change_what_is_drawn() -> None:
    model, given = tiny(), examples("editing")
    one, all_ = (evaluate_task(model, None, given, **{**HOW, "batch_size": size}) for size in (1, 6))
    for a, b in zip(one.images, all_.images, strict=True):
        # Matrix products round differently for other batch sizes, so a level may flip.
        assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_usage_counts_every_site_and_expert(source_timestep: str) -> None:
    model = tiny()
    weave = pool(model, "inpainting", "grounding", "control")
    how = {**HOW, "source_timestep": source_timestep}
    result = evaluate_task(model, weave, examples("control"), **how)
    assert result.sites == tuple(site.name for site in weave.sites)
    assert result.experts == ("inpainting", "grounding", "control")
    assert result.usage.shape == (2, 3)
    assert torch.allclose(result.usage.sum(dim=1), torch.ones(2))
    with weave.as_of("grounding"):
        earlier = evaluate_task(model, weave, examples("control"), **how)
    assert earlier.experts == ("inpainting", "grounding") and earlier.usage.shape == (2, 2)
    with weave.disabled():
        off = evaluate_task(model, weave, examples("control"), **how)
    assert off.sites == () and off.usage.numel() == 0


def test_experts_change_the_picture_and_switching_them_off_gives_the_base() -> None:
    model, given = tiny(), examples("inpainting")
    base = evaluate_task(model, None, given, **HOW)
    weave = pool(model, "inpainting")
    on = evaluate_task(model, weave, given, **HOW)
    with weave.disabled():
        off = evaluate_task(model, weave, given, **HOW)
    assert not all(np.array_equal(a, b) for a, b in zip(base.images, on.images, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(base.images, off.images, strict=True))


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(11)
    model = tiny()
    weave = pool(model, "inpainting")
    model.transformer.train()
    modes = [module.training for module in model.transformer.modules()]
    state = torch.get_rng_state()
    evaluate_task(model, weave, examples("grounding"), **HOW)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.transformer.modules()] == modes
    assert all(parameter.grad is None for parameter in model.transformer.parameters())


def test_a_base_without_guidance_does_not_read_it_and_one_with_does() -> None:
    given = examples("control", 2)
    plain = [evaluate_task(tiny(), None, given, **HOW, guidance=scale) for scale in (None, 3.5)]
    assert np.array_equal(plain[0].images[0], plain[1].images[0])
    distilled = tiny(guidance_embeds=1)
    weak, strong = (evaluate_task(distilled, None, given, **HOW, guidance=scale) for scale in (1.0, 9.0))
    assert not np.array_equal(weak.images[0], strong.images[0])


def test_pictures_that_no_oracle_reads_are_scored_by_closeness(monkeypatch: pytest.MonkeyPatch) -> None:
    target = np.full((16, 24, 3), 200, dtype=np.uint8)
    record = Record(
        "photo", np.zeros_like(target), "a photo", pairs=(Pair("editing", target, "make it gray"),)
    )
    given = [VIEWS["editing"](record, 0)]
    monkeypatch.setattr(validation, "generate", painter(lambda example: example.target - 51, given))
    result = evaluate_task(tiny(), None, given, **HOW)
    assert not result.exact and result.score == pytest.approx(0.8)


def test_pictures_of_several_sizes_are_drawn_in_their_own() -> None:
    shapes = [(16, 16, 3), (16, 16, 3), (16, 24, 3), (16, 16, 3)]
    given = [
        Example(str(i), "editing", "given", np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), "red")
        for i, shape in enumerate(shapes)
    ]
    assert [image.shape for image in evaluate_task(tiny(), None, given, **HOW).images] == shapes


def test_held_out_examples_are_those_of_their_source_and_seed() -> None:
    first, again = (
        held_out_examples(World(5), "editing", 4, seed=1),
        held_out_examples(World(5), "editing", 4, seed=1),
    )
    other = held_out_examples(World(6), "editing", 4, seed=1)
    assert [example.prompt for example in first] == [example.prompt for example in again]
    assert [example.prompt for example in first] != [example.prompt for example in other]
    with pytest.raises(ValueError, match="count=0"):
        held_out_examples(World(5), "editing", 0, seed=1)


def test_a_folder_that_is_gone_through_again_gives_other_views(tmp_path: Path) -> None:
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    item = {"label": "it", "bbox": [6, 4, 20, 18]}
    lines = [{"file_name": f"{name}.png", "text": name, "objects": [item]} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    folder = PictureFolder(tmp_path)
    made = held_out_examples(folder, "control", 12, seed=4)
    first = [VIEWS["control"](folder.record(index), 4) for index in range(2)]
    for example, own in zip(made, first, strict=False):  # the first round is as it always was
        assert np.array_equal(example.source, own.source) and example.prompt == own.prompt
    for start in range(2):
        assert len({example.kind for example in made[start::2]}) > 1
    again = held_out_examples(folder, "control", 12, seed=4)
    assert [example.kind for example in again] == [example.kind for example in made]


def test_a_worlds_examples_are_made_with_the_seed_itself() -> None:
    made = held_out_examples(World(5), "editing", 40, seed=9)
    assert [example.prompt for example in made] == [
        VIEWS["editing"](World(5).record(index), 9).prompt for index in range(40)
    ]


def test_several_tasks_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['control', 'editing'\]"):
        evaluate_task(tiny(), None, [*examples("control", 1), *examples("editing", 1)], **HOW)
    with pytest.raises(ValueError, match="no examples"):
        evaluate_task(tiny(), None, [], **HOW)


def test_pixels_become_pictures_by_rounding() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    (image,) = to_pictures(pixels)
    assert image.shape == (1, 5, 3) and image[0, :, 0].tolist() == [0, 0, 128, 255, 255]
