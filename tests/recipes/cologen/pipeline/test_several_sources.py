"""Several sources of one prompt: as the recipe's sampling has them, of their own sizes, computed once."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipes.cologen.errors import PictureError, RoutingQuestionError
from recipes.cologen.flux.sampling import generate
from recipes.cologen.flux.two_step import SourceKV
from recipes.cologen.pipeline import pipeline_over, plot_routing
from recipes.cologen.pipeline.family import token_side
from recipes.cologen.tools.random_flux2 import build_random_flux2

both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])
SIZE = {"height": 48, "width": 32}


def flux1(tools: SimpleNamespace) -> Any:
    return tools.base()


def klein(tools: SimpleNamespace) -> Any:
    return build_random_flux2(double_blocks=1, single_blocks=2)


@pytest.fixture(params=[flux1, klein], ids=["flux1", "klein"])
def family(request: pytest.FixtureRequest, tools: SimpleNamespace) -> SimpleNamespace:
    """A base with two experts, and the pipeline over the very same parts."""
    model = request.param(tools)
    tools.add_pool(model.transformer)
    pipe = pipeline_over(model)
    pipe.set_progress_bar_config(disable=True)
    return SimpleNamespace(model=model, pipe=pipe)


def pixels(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


@both_timesteps
def test_it_draws_what_the_recipes_sampling_draws(family, tools, timestep) -> None:
    side = token_side(family.pipe)
    first = [tools.picture(n, 3 * side, 2 * side) for n in (0, 1)]
    further = [tools.picture(n, side, 3 * side) for n in (2, 3)]  # another size, another shape
    third = [tools.picture(n, 2 * side, side) for n in (4, 5)]
    prompts = ["a red circle", "blue square"]
    asked = {"height": 3 * side, "width": 2 * side, "steps": 2, "source_timestep": timestep}

    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(n) for n in range(2)]

    given = [pixels(*place) for place in (first, further, third)]
    expected = generate(family.model, prompts, given, generator=seeded(), **asked) / 2 + 0.5
    groups = [list(group) for group in zip(first, further, third, strict=True)]
    asked = {"output_type": "pt", "generator": seeded(), "source_timestep": timestep}
    drawn = tools.draw(family.pipe, prompts, groups, **asked).images
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)


@both_timesteps
def test_a_group_of_one_is_that_one_and_every_source_matters(pipe, tools, photo, timestep) -> None:
    asked = {"source_timestep": timestep}
    one, other = tools.picture(1, 32, 64), tools.picture(2, 16, 16)
    alone = tools.draw(pipe, "a", photo, **asked)
    assert tools.difference(alone, tools.draw(pipe, "a", [[photo]], **asked)) == 0
    drawn = [
        alone,
        *(
            tools.draw(pipe, "a", [group], **asked)
            for group in ([photo, one], [photo, other], [photo, one, other])
        ),
    ]
    assert all(tools.difference(a, b) > 1e-4 for n, a in enumerate(drawn) for b in drawn[:n])
    assert all(picture.images.shape == (1, 48, 32, 3) for picture in drawn)  # the first one's size


def test_each_distinct_group_is_computed_once(pipe, tools, photo, monkeypatch) -> None:
    shapes, write = [], SourceKV.write

    def counted(kept: SourceKV, site: str, pair: Any) -> None:
        shapes.append(tuple(pair.key.shape[:2]))
        write(kept, site, pair)

    monkeypatch.setattr(SourceKV, "write", counted)
    one, other = tools.picture(1, 32, 64), tools.picture(2, 32, 64)
    groups = [[photo, one], [photo, other], [photo.copy(), one.copy()], [one, photo]]
    asked = {"source_timestep": "zero", "num_images_per_prompt": 2, "num_inference_steps": 3}
    cached = tools.draw(pipe, ["a"] * 3, groups[:3], **asked)
    assert shapes == [(2, 6 + 8)] * 4  # blocks; two distinct groups of six and eight tokens
    uncached = tools.draw(pipe, ["a"] * 3, groups[:3], cache_source=False, **asked)
    assert tools.difference(cached, uncached) == 0
    turned = tools.draw(pipe, "a", [groups[3]], source_timestep="zero", **SIZE)
    assert tools.difference(turned, tools.draw(pipe, "a", [groups[0]], source_timestep="zero")) > 1e-4


def test_the_task_is_of_the_first_source(pipe, tools, photo) -> None:
    mask = np.zeros((48, 32), dtype=bool)
    mask[8:24, 4:20] = True
    second = tools.picture(1, 32, 64)
    asked = {"task": "inpainting", "mask": mask, "output_routing": True}
    trace = tools.draw(pipe, "a", [[photo, second]], **asked).routing
    first, further = trace.groups[0]
    assert not first[mask].any() and np.array_equal(first[~mask], photo[~mask])
    assert np.array_equal(further, second)
    with pytest.raises(PictureError, match="one prompt has one mask"):
        pipe("a", [[photo, second]], [[mask, mask]], "inpainting")


@both_timesteps
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_the_routing_of_every_source_is_there(build, tools, photo, tmp_path, timestep, granularity) -> None:
    pipe = build(pool={"granularity": granularity})
    second = tools.picture(1, 32, 64)
    asked = {"source_timestep": timestep, "output_routing": True, "num_images_per_prompt": 2}
    trace = tools.draw(pipe, "a", [[photo, second]], **asked).routing
    assert trace.grids == ((3, 2), (2, 4)) and len(trace.groups) == 2
    assert trace.chosen.shape[2:] == (2, 14 if granularity == "token" else 1, 1)
    assert trace.region(1).shape == (2, 3, 2) and trace.region(1, source=1).shape == (2, 2, 4)
    if granularity == "token":
        items = (trace.chosen[:, :, 1, 6:, 0] == 1).float().mean((0, 1))
        assert torch.allclose(trace.region(1, source=1)[1].flatten(), items)
    figure = plot_routing(trace, tmp_path / "second.png", source=1)
    assert figure.axes[0].get_title() == "source 2"
    assert np.array_equal(figure.axes[0].get_images()[0].get_array(), second)
    with pytest.raises(RoutingQuestionError, match="there is no source 2; each picture has 2"):
        trace.region(source=2)


REFUSALS = {
    "unequal": ([["one", "two"], ["one"]], "as many pictures as the others, .*got 2, 1"),
    "mixed": ([["one", "two"], "one"], "got 2, 1"),
    "none": ([[], []], "one at least; got 0, 0"),
    "sizes": ([["one", "two"], ["one", "one"]], r"source 2 has another size .*32x64, 48x32"),
    "too many": ([["one", "two"]] * 3, "got 3 pictures for 2 prompts"),
    "a word": ([["one", None], ["one", None]], "expected a PIL picture.*got NoneType"),
}


@pytest.mark.parametrize(("groups", "message"), REFUSALS.values(), ids=REFUSALS)
def test_groups_that_cannot_be_read_are_refused(pipe, tools, photo, groups, message) -> None:
    named = {"one": photo, "two": tools.picture(1, 32, 64), None: None}
    given = [[named[name] for name in group] if isinstance(group, list) else named[group] for group in groups]
    with pytest.raises(PictureError, match=message):
        pipe(["a", "a"], given)


def test_a_flat_list_for_one_prompt_stays_many_pictures(pipe, tools, photo) -> None:
    assert len(tools.draw(pipe, "a", [photo, tools.picture(1)]).images) == 2
    embeds, pooled, _ = pipe.encode_prompt("a", max_sequence_length=12)
    with pytest.raises(PictureError, match=r"are a list in a list: \[\[a, b\]\]"):
        pipe(None, [photo, photo], prompt_embeds=embeds, pooled_prompt_embeds=pooled)
