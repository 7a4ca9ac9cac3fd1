"""Tasks of a call: prompt forms, what the source stream sees, control maps, and the pool as of a stage."""

import numpy as np
import pytest
import torch

import prw
from recipes.cologen.data.annotators.opencv import canny_map
from recipes.cologen.errors import PictureError, PromptError
from recipes.cologen.pipeline.tasks import worded

WORDED = {
    "a phrase": ("blue square", "grounding", None, "draw a red box around the blue square"),
    "an article": ("the blue square", "grounding", None, "draw a red box around the blue square"),
    "a colour taken": ("red circle", "grounding", None, "draw a green box around the red circle"),
    "a whole order": ("cover the cat with a red mask", "grounding", None, "cover the cat with a red mask"),
    "a capital": ("Draw a box around it", "grounding", None, "Draw a box around it"),
    "a map": ("a cat", "control", "soft_edge", "soft edge to image a cat"),
    "a map named": ("depth map to image a cat", "control", "depth", "depth map to image a cat"),
    "an edit": ("make it blue", "editing", None, "make it blue"),
    "no task": ("blue square", None, None, "blue square"),
}


@pytest.mark.parametrize(("prompt", "task", "control", "form"), WORDED.values(), ids=WORDED)
def test_a_prompt_gets_the_form_of_its_task(prompt, task, control, form) -> None:
    assert worded(prompt, task, control) == form
    assert worded(form, task, control) == form


def test_the_form_is_what_is_drawn(pipe, tools, photo) -> None:
    by_task = tools.draw(pipe, "blue square", photo, task="grounding")
    by_hand = tools.draw(pipe, "draw a red box around the blue square", photo)
    assert tools.difference(by_task, by_hand) == 0


def test_inpainting_hides_what_the_mask_covers(pipe, tools, photo) -> None:
    mask = np.zeros((48, 32), dtype=bool)
    mask[8:24, 4:20] = True
    holed, other = photo.copy(), photo.copy()
    holed[mask] = 0
    other[mask] = 77
    by_hole = tools.draw(pipe, "a", holed, task="inpainting", output_routing=True)
    for image in (photo, other):
        by_mask = tools.draw(pipe, "a", image, mask, "inpainting", output_routing=True)
        assert tools.difference(by_hole, by_mask) == 0
        assert np.array_equal(by_mask.routing.sources[0], holed)
    with pytest.raises(PictureError, match="there is no hole to fill"):
        pipe("a", photo, task="inpainting")
    with pytest.raises(PictureError, match='mask is for task="inpainting"; the task is None'):
        pipe("a", photo, mask)


def test_a_control_map_is_made_of_the_photo_or_given(pipe, tools, photo) -> None:
    made = tools.draw(pipe, "a", photo, task="control", control="canny", output_routing=True)
    edges = canny_map(photo)
    assert np.array_equal(made.routing.sources[0], edges)
    for prompt, asked in (("a", {"control": "canny", "annotate": False}), ("canny edge to image a", {})):
        assert tools.difference(made, tools.draw(pipe, prompt, edges, task="control", **asked)) == 0


def test_an_annotator_of_ones_own_makes_other_maps(pipe, tools, photo) -> None:
    with pytest.raises(
        PictureError, match=r"no annotator here makes a 'depth' map.*pipe\.annotators\['depth'\]"
    ):
        tools.draw(pipe, "a", photo, task="control", control="depth")
    pipe.annotators["depth"] = lambda image: 255 - image
    drawn = tools.draw(pipe, "a", photo, task="control", control="depth", output_routing=True)
    assert np.array_equal(drawn.routing.sources[0], 255 - photo)
    pipe.annotators["depth"] = lambda image: image[:8]
    with pytest.raises(PictureError, match="a map has the picture's size"):
        tools.draw(pipe, "a", photo, task="control", control="depth")


@pytest.mark.parametrize("timestep", ["same", "zero"])
def test_as_of_draws_what_the_pool_of_that_stage_drew(build, tools, photo, tmp_path, timestep) -> None:
    early = build(pool={"experts": ["inpainting"]})
    early.weave.save_pretrained(tmp_path)
    late = build(experts=False)
    prw.load_pipeline(late, tmp_path)
    late.weave.add_expert("grounding")
    with torch.no_grad():
        for parameter in late.weave.trainable_parameters():
            parameter.normal_()
    mask = np.ones((48, 32, 3), dtype=np.uint8) * 255
    mask[:20] = 0
    asked = {"task": "inpainting", "mask": mask, "source_timestep": timestep}
    was = tools.draw(early, "a", photo, **asked)
    for as_of in (True, "inpainting"):
        assert tools.difference(was, tools.draw(late, "a", photo, as_of=as_of, **asked)) < 1e-6
    assert tools.difference(was, tools.draw(late, "a", photo, **asked)) > 1e-5
    recorded = tools.draw(late, "a", photo, as_of=True, output_routing=True, **asked)
    assert recorded.routing.experts == ("inpainting",)


def test_an_expert_of_another_name_is_a_task_without_a_form(build, tools, photo) -> None:
    pipe = build(pool={"experts": ["style"]})
    assert (
        tools.difference(tools.draw(pipe, "a", photo), tools.draw(pipe, "a", photo, task="style", as_of=True))
        == 0
    )


REFUSALS = {
    "a task": ({"task": "edit"}, PromptError, "no task 'edit'.*Did you mean 'editing'"),
    "as_of": ({"as_of": True}, PromptError, "as_of=True means the stage of the task"),
    "a stage": ({"task": "editing", "as_of": True}, prw.PoolError, "the pool has no expert 'editing'"),
    "a kind": (
        {"task": "control", "control": "pose"},
        PictureError,
        "no control map 'pose'; expected one of canny",
    ),
    "no control": ({"task": "editing", "control": "canny"}, PictureError, 'only task="control" reads'),
}


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_task_that_cannot_be_done_is_refused(pipe, photo, changes, kind, message) -> None:
    with pytest.raises(kind, match=message):
        pipe("a", photo, **changes)


def test_without_a_pool_nothing_is_as_of_a_stage(build, photo) -> None:
    with pytest.raises(prw.PoolError, match="the pipeline has no experts"):
        build(experts=False)("a", photo, task="editing", as_of=True)
