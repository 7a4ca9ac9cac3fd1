"""Statistics of recorded decisions, and the alarm of a collapse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import prw
from prw.routing import Collapse, Routing, RoutingDecision, statistics_of, top_1, top_k
from prw.routing.statistics import owners

VIEWS = {"view", "unsqueeze", "squeeze", "select", "slice", "split", "alias", "_unsafe_view", "expand"}


def recorded(logits, names, routed=None, gate="prob"):
    """A record of one call per tensor of [sites, batch, items, experts]; each call goes through all sites."""
    routing = Routing(names)
    for call in logits:
        for site, one in enumerate(call):
            routing.add(f"site{site}", top_1(one, gate, routed))
    return routing


def by_hand(logits, mask):
    """Usage, entropy, margin and gate of one site's [batch, items, experts], item by item."""
    experts = logits.shape[-1]
    usage, sums = torch.zeros(experts), torch.zeros(3)
    for probabilities in logits.softmax(-1)[mask]:
        ordered = sorted(probabilities.tolist(), reverse=True)
        usage[probabilities.argmax()] += 1
        entropy = -sum(p * math.log(p) for p in ordered if p > 0)
        sums += torch.tensor([entropy, ordered[0] - (ordered[1] if experts > 1 else 0.0), ordered[0]])
    count = max(int(mask.sum()), 1)
    return usage / count, sums / count


SHAPES = st.tuples(*(st.integers(1, high) for high in (2, 3, 3, 4, 4)))


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_they_are_what_counting_by_hand_gives(shape, seed):
    torch.manual_seed(seed)
    logits = torch.randn(shape) * 3
    mask = torch.rand(shape[2:4]) < 0.7
    statistics = recorded(logits, tuple("abcd"[: shape[-1]])).statistics(mask)
    assert statistics.sites == tuple(f"site{site}" for site in range(shape[1]))
    for site in range(shape[1]):
        usage, means = by_hand(logits[:, site], mask.expand(shape[0], *mask.shape))
        assert torch.allclose(statistics.usage[site], usage)
        ours = (statistics.site_entropy, statistics.site_margin, statistics.site_gate)
        assert torch.allclose(torch.stack([of[site] for of in ours]), means, atol=1e-5)
    assert statistics.site_items.tolist() == [shape[0] * int(mask.sum())] * shape[1]
    for overall, of_site in (("entropy", "site_entropy"), ("margin", "site_margin"), ("gate", "site_gate")):
        expected = float(getattr(statistics, of_site).mean())  # every site has as many items
        assert getattr(statistics, overall) == pytest.approx(expected, abs=1e-5)
    assert statistics.share == pytest.approx(float(statistics.usage[:, -1].mean()), abs=1e-6)


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20), st.sampled_from(["prob", "unit"]))
def test_masking_a_token_is_as_not_routing_it(shape, seed, gate):
    torch.manual_seed(seed)
    logits, names = torch.randn(shape), tuple("abcd"[: shape[-1]])
    mask = torch.rand(shape[2:4]) < 0.6
    ours, theirs = recorded(logits, names, gate=gate), recorded(logits, names, routed=mask, gate=gate)
    assert torch.equal(ours.usage(mask), theirs.usage())
    assert (ours.share(mask), ours.gate(mask)) == (theirs.share(), theirs.gate())
    for per in ("batch", "sample"):
        assert torch.equal(ours.newest_share(per=per, mask=mask), theirs.newest_share(per=per))


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_what_is_masked_changes_nothing(shape, seed):
    torch.manual_seed(seed)
    logits, names = torch.randn(shape), tuple("abcd"[: shape[-1]])
    mask = torch.rand(shape[2:4]) < 0.6
    other = torch.where(mask.unsqueeze(-1), logits, torch.randn(shape) * 9)
    ours, theirs = recorded(logits, names).statistics(mask), recorded(other, names).statistics(mask)
    assert torch.equal(ours.usage, theirs.usage)
    assert (ours.share, ours.entropy, ours.margin) == (theirs.share, theirs.entropy, theirs.margin)


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_tallies_of_steps_add_up(shape, seed):
    torch.manual_seed(seed)
    logits, names = torch.randn(2, *shape), tuple("abcd"[: shape[-1]])
    one, two = (recorded(of_step, names).tally() for of_step in logits)
    both = statistics_of(two.plus(one.plus(None)))
    whole = recorded(logits.flatten(0, 1), names).statistics()
    assert torch.allclose(both.usage, whole.usage)
    assert both.entropy == pytest.approx(whole.entropy, abs=1e-5)


class Count(TorchDispatchMode):
    """Counts the operations that do work, and those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.work = self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.work += name not in VIEWS
        self.waits += name in ("_local_scalar_dense", "item")
        return function(*args, **(kwargs or {}))


QUESTIONS = {
    "tally": Routing.tally,
    "newest_share": Routing.newest_share,
    "statistics": Routing.statistics,
    "load_balance": prw.load_balance_loss,
    "router_z": prw.router_z_loss,
}


@torch.no_grad()
@pytest.mark.parametrize("ask", QUESTIONS)
def test_the_work_does_not_grow_with_the_sites(ask):
    counts = []
    mask = torch.rand(2, 5) < 0.7
    for sites in (2, 40):
        routing = recorded(torch.randn(1, sites, 2, 5, 3), ("a", "b", "c"))
        with Count() as count:
            QUESTIONS[ask](routing, mask=mask)
        counts.append((count.work, count.waits))
    assert counts[0] == counts[1]
    assert ask == "statistics" or counts[0][1] == 0, "nothing is read back before it is asked for"


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 2**20))
def test_an_item_with_several_experts_has_a_choice_for_each(shape, seed):
    torch.manual_seed(seed)
    sites, batch, items, experts = shape[1:]
    several = min(2, experts)
    names, mask = tuple("abcd"[:experts]), torch.rand(batch, items) < 0.7
    routing, chosen = Routing(names), torch.zeros(sites, experts)
    for site in range(sites):
        probabilities = torch.randn(batch, items, experts).softmax(-1)
        weights, ids = probabilities.topk(several, dim=-1)
        routing.add(f"site{site}", RoutingDecision(ids, weights, probabilities, probabilities.log()))
        chosen[site] = torch.bincount(ids[mask].flatten(), minlength=experts)
    statistics = routing.statistics(mask)
    assert torch.allclose(statistics.usage, chosen / max(several * int(mask.sum()), 1))
    assert statistics.site_items.tolist() == [int(mask.sum())] * sites
    assert statistics.share == pytest.approx(float(chosen[:, -1].sum()) / max(sites * int(mask.sum()), 1))
    assert routing.share(mask) == pytest.approx(statistics.share)
    assert 0.0 <= statistics.gate <= 1.0
    with torch.no_grad():
        even = prw.load_balance_loss(routing, mask=mask).item()
        assert -1e-6 <= even <= experts
        assert math.isfinite(prw.router_z_loss(routing, mask=mask).item())


def test_whole_samples_count_if_any_of_their_tokens_does():
    routing = recorded(
        torch.tensor([[[[[0.0, 1.0]], [[1.0, 0.0]]]]]), ("a", "b")
    )  # two samples, one item each
    assert routing.share(torch.tensor([[True, False], [False, False]])) == 1.0
    assert routing.statistics(torch.tensor([[True, False], [False, True]])).share == 0.5


def test_a_mask_that_does_not_fit_is_refused():
    routing = recorded(torch.zeros(1, 2, 2, 3, 2), ("a", "b"))
    for ask in (routing.share, routing.statistics, routing.usage, routing.gate, routing.tally):
        with pytest.raises(prw.RoutingError, match=r"shape \(2, 4\), but a decision of shape \(2, 3\)"):
            ask(torch.ones(2, 4, dtype=torch.bool))
        with pytest.raises(prw.ConfigError, match=r"attention_mask\.bool\(\)"):
            ask(torch.ones(2, 3))
    with pytest.raises(prw.RoutingError, match="no routing decision"):
        Routing(("a",)).statistics()


def test_forwards_as_of_an_earlier_stage_are_counted_with_the_others(make_plain, wake):
    weave = prw.inject(make_plain().eval(), rank=2, experts=["a", "b", "c"])
    wake(weave)
    hidden = torch.randn(2, 6, 8)
    with weave.record() as apart:
        weave.model(hidden)
    with weave.record() as together:
        weave.model(hidden)
        with weave.as_of("a"):
            weave.model(hidden)
    assert together.statistics().usage.shape == (2, 3)
    assert together.share() == pytest.approx((apart.share() + 1.0) / 2)
    assert together.statistics().share == pytest.approx(together.share())
    with pytest.raises(prw.RoutingError, match="An expert was added inside"), weave.record() as grown:
        weave.add_expert("d")
        weave.model(hidden)
        grown.statistics()


@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3),
        min_size=1,
        max_size=5,
    ),
    first=st.integers(0, 3),
    even=st.booleans(),
)
def test_items_are_numbered_by_their_owner(sizes, first, even):
    if even:
        sizes = [[(2, 3)] * 2 for _ in sizes]
    decisions = [
        RoutingDecision(*(torch.zeros(batch, items),) * 2, *(torch.zeros(batch, items, 2),) * 2)
        for of_site in sizes
        for batch, items in of_site
    ]
    homes = [first + place for place, of_site in enumerate(sizes) for _ in of_site]
    pairs = zip(homes, decisions, strict=True)
    expected = [home for home, decision in pairs for _ in range(decision.expert_ids.numel())]
    assert owners(decisions, homes, torch.device("cpu")).tolist() == expected


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
    assert newest == Collapse(site="site2", expert="new", share=1.0, newest=True)
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
