"""What the page answers, in plain Python: a picture, its shares, and settings that draw it again."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prw.routing import Routing, RoutingDecision
from recipes.cologen.app.about import TASKS
from recipes.cologen.app.answers import A_MAP, Answers, Request, joined
from recipes.cologen.app.limits import Limits
from recipes.cologen.app.serving import WARNS_OF_CLIP, keep_prompts_out_of_the_log
from recipes.cologen.app.shares import share_maps, shares_picture
from recipes.cologen.data.picture_files import enlarge
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.data.world import World
from recipes.cologen.errors import CologenError
from recipes.cologen.generate import main
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.pipeline import pipeline_over
from recipes.cologen.runs.reader import RunReader

PICTURE = World(3).record(0).image
HOLE = np.zeros((64, 64, 3), np.uint8)
HOLE[8:24, 12:36] = 255
ASKED = {
    "inpainting": Request(
        "inpainting", PICTURE, HOLE, "small red circle top left on gray", 1, 2, 3.5, "inpainting"
    ),
    "grounding": Request(
        "grounding",
        enlarge(PICTURE, 8),
        None,
        "cover the blue square with a red mask",
        2,
        3,
        None,
        "full-pool",
    ),
    "control": Request(
        "control", PICTURE, None, "line art to image red circle on gray", 3, 2, 1, "control", "lineart"
    ),
    "editing": Request("editing", PICTURE, None, "make the red circle blue", 0, 2, None, "no-experts"),
}


@pytest.fixture(scope="module")
def answers(finished_run: Path) -> Answers:
    return Answers(GenerationSession(RunReader(finished_run)), Limits(steps=5, letters=100))


@pytest.mark.parametrize("task", ASKED)
def test_the_settings_draw_the_picture_again_bit_for_bit(answers: Answers, tmp_path: Path, task: str) -> None:
    answer = answers.generate(ASKED[task])
    (tmp_path / "settings.json").write_text(answer.settings, encoding="utf-8")
    again = tmp_path / "again.png"
    assert main(["--settings", str(tmp_path / "settings.json"), "--output", str(again)]) == 0
    with Image.open(again) as opened:
        assert np.array_equal(np.asarray(opened), answer.picture)
    assert answer.picture.shape == (256, 256, 3)
    assert (answer.shares is None) == (task == "editing")


REFUSALS = {
    "no picture": (ASKED["editing"]._replace(image=None), "upload one first"),
    "no prompt": (ASKED["editing"]._replace(prompt=" "), "no prompt"),
    "a long prompt": (ASKED["editing"]._replace(prompt="red " * 30), "120 letters"),
    "an unknown word": (ASKED["editing"]._replace(prompt="make it pop"), "cannot read 'it'"),
    "nothing painted": (ASKED["inpainting"]._replace(mask=None), "nothing is painted over"),
    "all painted": (ASKED["inpainting"]._replace(mask=HOLE * 0 + 255), "covers the whole picture"),
    "too many steps": (ASKED["editing"]._replace(steps=6), "number of steps must be .* from 1 to 5, got 6"),
    "no steps": (ASKED["editing"]._replace(steps=0), "number of steps must be .* got 0"),
    "half a step": (ASKED["editing"]._replace(steps=1.5), "number of steps must be .* got 1.5"),
    "no seed": (ASKED["editing"]._replace(seed=None), "the seed must be .* got none"),
    "a negative seed": (ASKED["editing"]._replace(seed=-3), "the seed must be .* from 0 to .* got -3"),
    "half a seed": (ASKED["editing"]._replace(seed=1.5), "the seed must be a whole number .* got 1.5"),
    "a seed that browsers round": (ASKED["editing"]._replace(seed=2**53), "from 0 to 9007199254740991"),
    "a seed that is no number": (ASKED["editing"]._replace(seed=float("nan")), "the seed .* got nan"),
    "a pool that is not there": (ASKED["editing"]._replace(pool="editing"), "no pool 'editing' for editing"),
    "a path for a pool": (ASKED["editing"]._replace(pool="../x"), "no pool '../x'"),
    "a map that needs a network": (ASKED["control"]._replace(kind="depth"), "Give the map itself"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_in_words(answers: Answers, asked: Request, message: str) -> None:
    with pytest.raises(CologenError, match=message):
        answers.generate(asked)


def test_a_prompt_of_another_kind_than_the_map_that_was_made_gets_a_note(answers: Answers) -> None:
    words = "depth map to image red circle top left on gray"
    drawn = answers.generate(ASKED["control"]._replace(prompt=words, kind="canny"))
    assert 'the map is canny ("canny edge to image"), but the prompt begins with' in drawn.notes
    assert "the map is" not in answers.generate(ASKED["control"]._replace(prompt=words, kind=A_MAP)).notes


def test_nothing_that_was_typed_reaches_the_log(
    answers: Answers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(WARNS_OF_CLIP)
    monkeypatch.setattr(logger, "filters", [])
    logger.addHandler(caplog.handler)  # diffusers' loggers end at their own root
    monkeypatch.setattr(logger, "level", logging.WARNING)
    pipe = pipeline_over(answers.session.model)
    try:
        for said in (True, False):
            caplog.clear()
            # On FLUX itself CLIP reads 77 tokens and T5 512, so prompts in between get here.
            pipe._get_clip_prompt_embeds(["cyan " * 30 + "cross"], device=torch.device("cpu"))
            assert ("cross" in caplog.text) is said, caplog.text
            keep_prompts_out_of_the_log()
    finally:
        logger.removeHandler(caplog.handler)


def test_the_preview_is_the_map_that_the_model_sees(answers: Answers) -> None:
    assert answers.preview(None, A_MAP) is None
    assert np.array_equal(answers.preview(PICTURE, A_MAP), enlarge(PICTURE, 16))
    made = answers.session.made_map(PICTURE, "canny")
    assert np.array_equal(answers.preview(PICTURE, "canny"), enlarge(made, 16))


def test_layers_of_strokes_are_one_mask_or_none() -> None:
    assert joined([]) is None and joined([HOLE * 0]) is None
    other = HOLE[::-1].copy()
    assert np.array_equal(joined([HOLE, other, HOLE * 0]), np.maximum(HOLE, other))


def test_every_task_has_prompts_that_the_world_can_read() -> None:
    assert list(TASKS) == list(VIEWS)
    words = {word for task in TASKS.values() for prompt in task.world for word in prompt.split()}
    assert words <= set(VOCABULARY)


def routing_of(*ids: list[int], experts: int = 3) -> Routing:
    """A record of one site, one decision a step."""
    routing = Routing(tuple("abc"[:experts]))
    for step in ids:
        chosen = torch.tensor([step])
        flat = torch.zeros(1, len(step), experts)
        routing.add("site", RoutingDecision(chosen, torch.ones(chosen.shape), flat, flat))
    return routing


def test_shares_are_counted_where_they_were_decided() -> None:
    shares = share_maps(routing_of([0, 0, 1, 2], [0, 1, 1, -1]))
    assert shares is not None and shares.tolist() == [[1, 0.5, 0, 0], [0, 0.5, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("source", [np.zeros((8, 8, 3), np.uint8), np.zeros((4, 16, 3), np.uint8)])
def test_shares_are_drawn_whatever_the_shape(source: np.ndarray) -> None:
    picture = shares_picture(routing_of([0, 0, 1, 2], [0, 1, 1, 0]), source)
    assert picture is not None and picture.dtype == np.uint8 and picture.ndim == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_where_whole_samples_are_routed_the_sites_are_drawn_instead() -> None:
    routing = routing_of([1], [2])
    assert share_maps(routing) is None
    assert shares_picture(routing, np.zeros((8, 8, 3), np.uint8)) is not None
    assert shares_picture(None, np.zeros((8, 8, 3), np.uint8)) is None


def test_a_size_is_drawn_and_too_large_a_one_is_refused(answers: Answers) -> None:
    asked = ASKED["grounding"]._replace(size=" 32 x 16 ")
    assert answers.generate(asked).picture.shape[:2] == (256, 512)
    for size, message in (
        ("big", "the size: expected WIDTHxHEIGHT"),
        ("2048x2048", "4194304 pixels; at most 1048576 are generated here"),
        ("30x16", "multiples of 4"),
    ):
        with pytest.raises(CologenError, match=message):
            answers.generate(asked._replace(size=size))
