"""The heat-map: it shows the usage, can be written, and says what it lacks."""

import sys

import pytest
import torch
from matplotlib.image import imread

import prw
from prw.routing import Routing, top_1


@pytest.fixture
def routing():
    record = Routing(("old", "new"))
    for site in range(3):
        record.add(f"blocks.{site}.attn", top_1(torch.randn(2, 10, 2), "prob"))
    return record


def test_it_shows_the_usage_by_site_and_expert(routing):
    figure = prw.plot_routing(routing)
    (image,) = figure.axes[0].get_images()
    assert torch.equal(torch.tensor(image.get_array()), routing.usage())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["old", "new"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(routing.decisions)
    assert f"{float(routing.usage()[2, 0]):.2f}" in {text.get_text() for text in figure.axes[0].texts}
    assert figure.get_suptitle().startswith(f"share of new {routing.share():.2f}")


def test_a_mask_and_statistics_give_the_same_picture(routing):
    mask = torch.rand(2, 10) < 0.5
    masked, taken = prw.plot_routing(routing, mask=mask), prw.plot_routing(routing.statistics(mask))
    pictures = [figure.axes[0].get_images()[0].get_array().tolist() for figure in (masked, taken)]
    assert pictures[0] == pictures[1] == routing.usage(mask).tolist()
    with pytest.raises(prw.UnsupportedError, match="mask cannot be applied to statistics"):
        prw.plot_routing(routing.statistics(), mask=mask)


def test_a_png_is_written_that_is_not_blank(routing, tmp_path):
    prw.plot_routing(routing, tmp_path / "new" / "routing.png", title="after stage two")
    picture = imread(tmp_path / "new" / "routing.png")
    assert picture.shape[0] > 200
    assert picture.std() > 0.1


def test_many_sites_stay_legible(tmp_path):
    record = Routing(tuple(f"expert {index}" for index in range(6)))
    for site in range(150):
        record.add(
            f"a.very.long.path.to.{site}.an.attention.block.inside.a.model",
            top_1(torch.randn(1, 4, 6), "prob"),
        )
    figure = prw.plot_routing(record)
    assert len(figure.axes[0].get_yticks()) <= 60
    assert not figure.axes[0].texts
    assert figure.get_size_inches()[1] < 20


def test_a_missing_matplotlib_is_said(routing, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(prw.UnsupportedError, match="pip install matplotlib"):
        prw.plot_routing(routing)
