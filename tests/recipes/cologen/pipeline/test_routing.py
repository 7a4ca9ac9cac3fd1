"""The routing of a call: shares by block and step, regions, and the picture of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.cologen.errors import RoutingQuestionError
from recipes.cologen.pipeline import plot_routing


@pytest.mark.parametrize(("timestep", "steps"), [("same", (0, 1, 2)), ("zero", (0,))])
def test_every_choice_is_there_once(pipe, tools, photo, timestep, steps) -> None:
    asked = {"source_timestep": timestep, "num_inference_steps": 3, "num_images_per_prompt": 2}
    result = tools.draw(pipe, "a", photo, output_routing=True, **asked)
    trace = result.routing
    assert (
        trace.steps == steps and trace.experts == pipe.weave.experts and (trace.rows, trace.columns) == (3, 2)
    )
    assert trace.sites == tuple(site.name for site in pipe.weave.sites)
    assert trace.chosen.shape == (len(steps), 4, 2, 6, 1) and set(trace.chosen.unique().tolist()) == {0, 1}
    assert trace.shares().sum(-1).allclose(torch.ones(len(steps), 4))
    assert trace.share("grounding") == pytest.approx(float(trace.shares()[..., 1].mean()))
    assert trace.region(1).shape == (2, 3, 2) and trace.region(1).sum(0).allclose(torch.ones(3, 2))
    assert tools.difference(result, tools.draw(pipe, "a", photo, **asked)) == 0  # looking changes nothing


def test_it_is_what_the_pool_records(pipe, tools, photo) -> None:
    trace = tools.draw(pipe, "a", photo, output_routing=True).routing
    with pipe.weave.record() as routing:
        tools.draw(pipe, "a", photo)
    assert trace.shares().mean(0).allclose(routing.usage().float())
    first = routing.decisions[trace.sites[2]][0].expert_ids
    assert torch.equal(trace.chosen[0, 2, :, :, 0].long(), first)
    assert torch.equal(trace.region(0, [trace.sites[2]], [0])[1].flatten().long(), first[0])


def test_each_picture_has_the_routing_of_its_own_source(pipe, tools) -> None:
    one, other = tools.picture(0), tools.picture(5)
    asked = {"source_timestep": "zero", "output_routing": True}
    trace = tools.draw(pipe, ["a"] * 3, [one, other, one], **asked).routing
    assert torch.equal(trace.chosen[:, :, 0], trace.chosen[:, :, 2])
    alone = tools.draw(pipe, "a", other, **asked).routing
    assert torch.equal(trace.chosen[:, :, 1], alone.chosen[:, :, 0])
    assert np.array_equal(trace.sources[1], other) and np.array_equal(trace.sources[2], one)


def test_a_whole_sample_has_one_region(build, tools, photo) -> None:
    trace = tools.draw(build(pool={"granularity": "sample"}), "a", photo, output_routing=True).routing
    assert trace.chosen.shape == (2, 4, 1, 1, 1)
    assert trace.region().flatten(1).std(1).max() == 0


def test_guidance_by_a_negative_prompt_is_not_recorded(pipe, tools, photo) -> None:
    asked = {"negative_prompt": "blue square", "true_cfg_scale": 2.0, "source_timestep": "zero"}
    guided = tools.draw(pipe, "a red circle", photo, output_routing=True, **asked).routing
    plain = tools.draw(pipe, "a red circle", photo, output_routing=True, source_timestep="zero").routing
    assert torch.equal(guided.chosen, plain.chosen)


def test_the_picture_shows_the_source_and_one_panel_for_each_expert(pipe, tools, photo, tmp_path) -> None:
    result = tools.draw(pipe, "a", photo, output_routing=True)
    figure = plot_routing(result, tmp_path / "shown" / "routing.png", sites=result.routing.sites[:1])
    titles = [axis.get_title() for axis in figure.axes]
    region = result.routing.region(0, result.routing.sites[:1])
    assert titles[:3] == [
        "source",
        *(f"{n}: {s.mean():.2f}" for n, s in zip(pipe.weave.experts, region, strict=True)),
    ]
    shown = figure.axes[2].get_images()[1].get_array()
    assert np.allclose(shown, region[1]) and np.array_equal(figure.axes[0].get_images()[0].get_array(), photo)
    with Image.open(tmp_path / "shown" / "routing.png") as opened:
        assert opened.size[0] > 400


def test_questions_that_have_no_answer_are_refused(pipe, build, tools, photo) -> None:
    with pytest.raises(RoutingQuestionError, match="there is no image: only the tokens of a source"):
        pipe("a", output_routing=True)
    with pytest.raises(RoutingQuestionError, match="there is no pool"):
        build(experts=False)("a", photo, output_routing=True)
    with pytest.raises(RoutingQuestionError, match="call it with output_routing=True"):
        plot_routing(tools.draw(pipe, "a", photo))
    trace = tools.draw(pipe, "a", photo, output_routing=True).routing
    for ask in (lambda: trace.share("x"), lambda: trace.region(1), lambda: trace.region(0, ["x"])):
        with pytest.raises(RoutingQuestionError):
            ask()
    with pytest.raises(RoutingQuestionError, match="recorded were: 0, 1"):
        trace.region(0, steps=[7])
