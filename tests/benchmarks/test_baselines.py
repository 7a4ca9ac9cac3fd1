"""Baselines stand on equal footing: they compute what prw computes wherever their method allows it."""

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baselines, points
from benchmarks.baselines import BASELINES, Peer
from benchmarks.cases import ROUTINGS, at
from benchmarks.floors import forward_floor, training_floor
from benchmarks.points import MARGIN, assignment_of, gradients_like, routers_of, weights_of
from benchmarks.schema import Point

POINT = at(64, 32, 4, 3)
CPU = torch.device("cpu")
SAME_FUNCTION = ("MixLoRA-style loop", "transformers grouped_mm")


def build(name: str, point: Point = POINT) -> Peer:
    return baselines.build(name, point, CPU)


def hidden_of(point: Point) -> Tensor:
    return points.hidden_of(point, CPU)


def outputs(name: str, point: Point = POINT, training: bool = False) -> tuple[Tensor, ...]:
    peer = build(name, point)
    peer.model.train(training)
    with torch.no_grad():
        return tuple(peer.model(hidden_of(point)))


def gradients(name: str, point: Point) -> tuple[Tensor, int]:
    """Gradient of the input, and how many numbers got one."""
    peer, hidden = build(name, point), hidden_of(point)
    peer.model.eval()
    torch.autograd.backward(tuple(peer.model(hidden)), gradients_like(hidden))
    assert hidden.grad is not None
    trained = sum(parameter.numel() for parameter in peer.trainable() if parameter.grad is not None)
    return hidden.grad, trained


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_recipes_compute_what_prw_computes(name: str) -> None:
    torch.testing.assert_close(outputs(name), outputs("prw"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_recipes_have_the_gradient_that_prw_has(name: str) -> None:
    torch.testing.assert_close(gradients(name, POINT)[0], gradients("prw", POINT)[0], atol=1e-4, rtol=1e-4)


def test_one_expert_is_one_peft_lora() -> None:
    point = POINT.but(experts=1)
    torch.testing.assert_close(outputs("PEFT LoRA", point), outputs("prw", point), atol=1e-5, rtol=1e-5)


def test_xlora_nearly_agrees_since_its_router_is_nearly_sure() -> None:
    """It mixes all experts by their probabilities; the others have e^-10 of the chosen one's."""
    torch.testing.assert_close(outputs("PEFT X-LoRA layer"), outputs("prw"), atol=0.02, rtol=0.02)


def test_arrow_adds_the_expert_that_its_prototypes_choose() -> None:
    peer, hidden = build("PEFT Arrow", POINT), hidden_of(POINT)
    weights = weights_of(POINT, CPU)
    with torch.no_grad():
        found = peer.model(hidden)
        base = outputs("two nn.Linear")
    layers = [module for module in peer.model.modules() if isinstance(module, LoraLinear)]
    for place, layer in enumerate(layers):
        chosen = (hidden @ layer.lora_arrow["arrow_router"].prototypes.T).abs().argmax(-1)
        for expert, pairs in enumerate(weights.adapters):
            rows = chosen == expert
            delta = 2 * hidden[rows] @ pairs[place].down.T @ pairs[place].up.T
            torch.testing.assert_close(found[place][rows], base[place][rows] + delta, atol=1e-4, rtol=1e-4)


def test_what_trains_is_what_the_contract_says() -> None:
    pair = 4 * POINT.width * POINT.rank  # A and B of K and V
    expected = {
        "two nn.Linear": 0,
        "PEFT LoRA": pair,
        "PEFT X-LoRA layer": pair + POINT.width,
        "PEFT Arrow": pair,
        "MixLoRA-style loop": pair + POINT.width,
        "transformers grouped_mm": POINT.experts * pair + POINT.width,
        "prw": pair + 2 * POINT.width,
    }
    for name, count in expected.items():
        trainable = build(name, POINT).trainable()
        assert sum(parameter.numel() for parameter in trainable) == count, name


@pytest.mark.parametrize("name", [name for name in BASELINES if "compile" not in name])
def test_what_trains_gets_a_gradient_and_nothing_else_does(name: str) -> None:
    peer, hidden = build(name, POINT), hidden_of(POINT)
    torch.autograd.backward(tuple(peer.model(hidden)), gradients_like(hidden))
    for key, parameter in peer.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_compiled_reference_computes_what_prw_computes() -> None:
    name = "torch.compile of reference"
    torch.testing.assert_close(outputs(name), outputs("prw"), atol=1e-5, rtol=1e-5)


def test_a_base_is_shared_and_never_copied() -> None:
    built = [build(name, POINT) for name in ("two nn.Linear", "PEFT LoRA", "MixLoRA-style loop", "prw")]
    parameters = [parameter for peer in built for parameter in peer.model.parameters()]
    bases = [parameter for parameter in parameters if tuple(parameter.shape) == (POINT.width, POINT.width)]
    assert len(bases) == 2 * len(built)
    assert len({parameter.untyped_storage().data_ptr() for parameter in bases}) == 2


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_prw_routes_as_assigned_with_and_without_noise(granularity: str, experts: int) -> None:
    point = POINT.but(granularity=granularity, experts=experts)
    peer, wanted = build("prw", point), assignment_of(point)
    for training in (False, True):
        peer.model.train(training)
        with peer.weave.record() as routing:
            peer.model(hidden_of(point))
        (decision,) = routing.all()
        if granularity == "sample":
            wanted = wanted[:, :1]
        assert torch.equal(decision.expert_ids, wanted)


def test_skew_is_what_it_says() -> None:
    point = POINT.but(tokens=4000)
    mostly = (assignment_of(point.but(routing="90/10")) == 2).float().mean()
    assert 0.88 < mostly < 0.92
    assert (assignment_of(point.but(routing="all to one")) == 2).all()
    even = torch.bincount(assignment_of(point).flatten(), minlength=3) / 4000
    assert (even - 1 / 3).abs().max() < 0.03


def test_the_input_is_random_but_for_the_router() -> None:
    hidden, routers = hidden_of(POINT).detach(), routers_of(POINT)
    rest = hidden - MARGIN * routers[assignment_of(POINT)]
    assert abs(rest.mean()) < 0.1
    assert abs(rest.std() - 1) < 0.05


def flops(name: str, point: Point, training: bool) -> int:
    peer, hidden = build(name, point), hidden_of(point)
    with FlopCounterMode(display=False) as counted:
        out = tuple(peer.model(hidden))
        if training:
            torch.autograd.backward(out, gradients_like(hidden))
    return counted.get_total_flops()


@pytest.mark.parametrize(("rank", "width"), [(4, 32), (8, 64), (3, 17)])
def test_floors_are_the_operations_that_torch_counts_for_one_lora(rank: int, width: int) -> None:
    point = at(64, width, rank, 1)
    forward = flops("PEFT LoRA", point, False) / flops("two nn.Linear", point, False)
    training = flops("PEFT LoRA", point, True) / flops("two nn.Linear", point, True)
    assert forward == pytest.approx(forward_floor(rank, width))
    assert training == pytest.approx(training_floor(rank, width, newest_share=1.0))


def test_a_point_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="do not split"):
        at(10, 8, 2)
    with pytest.raises(ValueError, match="orthogonal"):
        at(8, 8, 2, 9)
    with pytest.raises(ValueError, match="no competitor"):
        build("PEFT")
    assert "PEFT" not in BASELINES


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing_sends_items_where_it_says(routing: str) -> None:
    ids = assignment_of(at(4096, 8, 1, 8, routing=routing)).flatten()
    shares = ids.bincount(minlength=8) / len(ids)
    if routing == "all to one":
        assert shares[7] == 1
    if routing == "90/10":
        assert 0.85 < shares[7] < 0.95
    if routing == "half empty":
        assert (shares[:4] == 0).all()
    if routing == "blobs":
        assert int((ids[1:] != ids[:-1]).sum()) < 16


def test_sixteen_bits_are_of_everything_but_adapters_that_are_asked_to_stay_in_float32() -> None:
    point = POINT.but(dtype="bfloat16")
    for name in ("prw", "PEFT LoRA", "two nn.Linear"):
        assert {one.dtype for one in build(name, point).model.parameters()} == {torch.bfloat16}
    found = build("PEFT LoRA, float32 adapters", point).trainable()
    assert {one.dtype for one in found} == {torch.float32}
