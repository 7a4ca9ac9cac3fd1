"""noise_seed: noise from a stream of its own, replayed by checkpointing, going on after loading."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint

import prw
from prw.layers.noise import Drawn, NoiseStream

SETTINGS = {"rank": 2, "experts": ["a", "b", "c"], "noise_seed": 5}


def noisy(make_plain, wake, **settings):
    torch.manual_seed(3)
    base = make_plain().train()
    weave = prw.inject(base, **{**SETTINGS, **settings})
    wake(weave)
    return base, weave, torch.randn(2, 5, 8)


def draws(base, weave, hidden, times=2):
    """Logits of some forwards, each with noise of its own."""
    logits = []
    for _ in range(times):
        with weave.record() as routing:
            base(hidden)
        logits += [decision.logits.detach() for decision in routing.all()]
    return logits


def same(left, right):
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def test_the_noise_depends_on_its_seed_and_nothing_else(make_plain, wake):
    first = draws(*noisy(make_plain, wake))
    torch.manual_seed(99)
    torch.rand(7)
    assert same(first, draws(*noisy(make_plain, wake)))
    assert not same(first, draws(*noisy(make_plain, wake, noise_seed=6)))
    assert not torch.equal(first[0], first[2]), "every forward draws anew"


def test_drawing_leaves_torchs_generator_alone(make_plain, wake):
    base, _, hidden = noisy(make_plain, wake)
    before = torch.get_rng_state()
    base(hidden)
    assert torch.equal(torch.get_rng_state(), before)
    base, _, hidden = noisy(make_plain, wake, noise_seed=None)
    before = torch.get_rng_state()
    base(hidden)
    assert not torch.equal(torch.get_rng_state(), before), "without a seed it is torch's, as ever"


def test_evaluation_draws_nothing(make_plain, wake):
    base, weave, hidden = noisy(make_plain, wake)
    draws(base.eval(), weave, hidden)
    assert weave.config.noise_draws == 0
    draws(base.train(), weave, hidden, times=3)
    assert weave.config.noise_draws == 6, "one for each of two sites, key and value together"


@pytest.mark.parametrize("route", ["prw", "peft"])
def test_a_loaded_pool_goes_on_where_it_was(make_plain, wake, tmp_path, route):
    base, weave, hidden = noisy(make_plain, wake)
    state = copy.deepcopy(make_plain().state_dict())
    if route == "peft":
        weave.eject()
        base.load_state_dict(state)
        base = get_peft_model(base, prw.PrwConfig(**SETTINGS))
        weave = prw.Weave(base)
        wake(weave)
    base.train()
    draws(base, weave, hidden)
    (weave if route == "prw" else base).save_pretrained(tmp_path)
    wanted = draws(base, weave, hidden)
    if route == "prw":
        weave.eject()
        again = prw.load(base, tmp_path)
    else:
        fresh = make_plain()
        fresh.load_state_dict(state)
        base = PeftModel.from_pretrained(fresh, tmp_path, is_trainable=True)
        again = prw.Weave(base)
    base.train()
    assert same(draws(base, again, hidden), wanted)


def test_a_copy_and_a_pickle_go_on_by_themselves(make_plain, wake):
    base, weave, hidden = noisy(make_plain, wake)
    draws(base, weave, hidden)
    twins = [copy.deepcopy(base), pickle.loads(pickle.dumps(base))]
    wanted = draws(base, weave, hidden)
    for twin in twins:
        assert same(draws(twin, prw.Weave(twin), hidden), wanted)


def gradients(base, weave, hiddens, how):
    """Gradients of several forwards and one backward, with or without checkpointing."""
    weave.config.noise_draws = 0
    total = 0.0
    for hidden in hiddens:
        for block in base.blocks:
            hidden = block(hidden) if how is None else checkpoint(block, hidden, use_reentrant=how)
        total = total + hidden.square().sum()
    base.zero_grad()
    total.backward()
    return [parameter.grad.clone() for parameter in weave.trainable_parameters()]


@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_checkpointing_replays_the_noise_of_each_forward(make_plain, wake, how, granularity):
    base, weave, hidden = noisy(make_plain, wake, granularity=granularity)
    hiddens = [hidden.requires_grad_(), torch.randn(2, 5, 8, requires_grad=True), hidden]
    wanted = gradients(base, weave, hiddens, None)
    got = gradients(base, weave, hiddens, how)
    assert all(torch.allclose(x, y, atol=1e-5, rtol=1e-4) for x, y in zip(got, wanted, strict=True))
    assert weave.config.noise_draws == 6, "recomputing draws nothing new"
    other = gradients(base, prw.Weave(base), [hidden, hidden, hidden], None)
    assert not all(torch.allclose(x, y, atol=1e-3) for x, y in zip(other, wanted, strict=True))


def test_dropout_inside_the_checkpointed_part_is_no_obstacle(make_plain, wake):
    base, weave, hidden = noisy(make_plain, wake, dropout=0.5)
    torch.manual_seed(1)
    wanted = gradients(base, weave, [hidden], None)
    torch.manual_seed(1)
    got = gradients(base, weave, [hidden.requires_grad_()], False)
    assert all(torch.allclose(x, y, atol=1e-5, rtol=1e-4) for x, y in zip(got, wanted, strict=True))


class Counter:
    noise_draws = 0


def test_every_process_has_a_stream_of_its_own(monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr("prw.layers.noise.process_rank", lambda rank=rank: rank)
        stream = NoiseStream(0, Counter())
        seeds.append([stream.next_seed() for _ in range(50)])
    assert len({*seeds[0], *seeds[1]}) == 100
    assert all(0 <= seed < 1 << 63 for seed in seeds[0])


def test_what_was_drawn_is_found_by_its_input_and_the_latest_first():
    drawn, inputs = Drawn(), [torch.randn(1, 3, 40) for _ in range(3)]
    with pytest.raises(prw.RoutingError, match=r"noise \(noise_seed\) was not noted"):
        drawn.again(inputs[0])
    for seed, hidden in enumerate([*inputs, inputs[0]]):
        drawn.add(hidden, seed)
    assert [drawn.again(hidden) for hidden in (inputs[1], inputs[0], inputs[0], inputs[2])] == [1, 3, 0, 2]
    assert drawn.again(inputs[1] * (1 + 1e-6)) == 1, "a rounding apart, and a second backward"


def test_compiling_is_refused_with_the_reason(make_plain, wake):
    base, _, hidden = noisy(make_plain, wake)
    with pytest.raises(Exception, match="noise_seed gives the router's noise a generator of its own"):
        torch.compile(base.blocks[0].to_k, backend="eager", fullgraph=True)(hidden)
    torch._dynamo.reset()
