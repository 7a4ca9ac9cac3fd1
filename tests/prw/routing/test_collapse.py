"""The alarm: it names the site and the expert, tells veterans from the newest, and keeps quiet otherwise."""

import pytest
import torch

import prw
from prw.routing import Routing, top_1, top_k


def routing_to(*chosen, names=("old", "new")):
    """A record with one site per list of chosen experts."""
    routing = Routing(names)
    for site, experts in enumerate(chosen):
        logits = torch.nn.functional.one_hot(torch.tensor(experts), len(names)).float().unsqueeze(0)
        routing.add(f"site{site}", top_1(logits, "prob"))
    return routing


def test_it_names_site_and_expert():
    routing = routing_to([0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1])
    veteran, newest = routing.collapsed()
    assert veteran == ("site0", "old", 1.0, False)
    assert newest == prw.Collapse(site="site2", expert="new", share=1.0, newest=True)
    assert [one.site for one in routing.collapsed(threshold=0.5)] == ["site0", "site1", "site2"]
    assert routing.statistics().collapsed() == routing.collapsed()


def test_the_newest_may_take_what_rho_gives_it():
    routing = routing_to([0, 0], [1, 1])
    assert [one.expert for one in routing.collapsed(rho=0.8)] == ["old", "new"]
    assert [one.expert for one in routing.collapsed(rho=1.0)] == ["old"]
    assert [one.expert for one in routing.collapsed(threshold=0.7, rho=0.7)] == ["old"]


def test_one_expert_cannot_collapse_and_unrouted_sites_do_not():
    assert routing_to([0, 0], names=("only",)).collapsed() == ()
    mask = torch.zeros(1, 2, dtype=torch.bool)
    assert routing_to([0, 0]).collapsed(mask=mask) == ()


def test_with_several_choices_an_item_counts_for_each_of_its_experts():
    logits = torch.tensor([[[3.0, 2.0, 0.0]] * 3 + [[3.0, 0.0, 2.0]]])
    routing = Routing(("a", "b", "c"))
    routing.add("site", top_k(logits, "prob", k=2))
    assert routing.statistics().choices == 2
    assert [(one.expert, one.share) for one in routing.collapsed()] == [("a", 1.0)]
    everything = Routing(("a", "b"))
    everything.add("site", top_k(logits[..., :2], "prob", k=2))
    assert everything.collapsed() == ()


def test_a_mask_can_hide_or_show_it():
    routing = routing_to([0, 0, 1, 1])
    assert routing.collapsed() == ()
    assert routing.collapsed(mask=torch.tensor([[True, True, False, False]]))[0].expert == "old"


@pytest.mark.parametrize("values", [{"threshold": 0.0}, {"threshold": 95}, {"rho": 80}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(prw.ConfigError, match=next(iter(values))):
        routing_to([0, 1]).collapsed(**values)
