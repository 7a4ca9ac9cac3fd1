"""A loss added to the model's own: once per forward, on any output that has one, gone when removed."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

import prw
from prw.layers.auxiliary import SHIFTED, part_of_batch

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

VETERAN = partial(prw.veteran_loss, rho=0.1, alpha=0.5)


def plain(model):
    return model, prw.inject(model, rank=2, experts=["a", "b"], noise=False)


def wrapped(model):
    model = get_peft_model(model, prw.PrwConfig(rank=2, experts=["a", "b"], noise=False))
    return model, prw.Weave(model)


@pytest.fixture(params=[plain, wrapped], ids=["plain", "peft"])
def trainee(request, make_host):
    """A Llama in training mode, its pool, and a batch with labels."""
    model, weave = request.param(make_host("llama").model)
    tokens = torch.randint(0, 40, (2, 7))
    return model.train(), weave, {"input_ids": tokens, "labels": tokens}


def test_it_is_the_sum_of_both_and_trains_the_router(trainee):
    model, weave, batch = trainee
    with weave.record() as routing:
        own = model(**batch).loss
    expected = own + VETERAN(routing)
    added = weave.add_to_loss(VETERAN)
    output = model(**batch)
    assert torch.equal(output.loss, expected)
    assert torch.equal(output["loss"], output.loss)
    output.loss.backward()
    gates = [p for name, p in model.named_parameters() if "prw_gate1" in name]
    assert all(gate.grad.abs().sum() > 0 for gate in gates), (
        "with B = 0 only the veteran loss reaches the gates"
    )
    added.remove()
    added.remove()
    assert torch.equal(model(**batch).loss, own)


def test_it_ends_with_its_block_also_after_an_error(trainee):
    model, weave, batch = trainee
    own = model(**batch).loss
    with pytest.raises(KeyboardInterrupt), weave.add_to_loss(VETERAN):
        assert not torch.equal(model(**batch).loss, own)
        raise KeyboardInterrupt
    assert torch.equal(model(**batch).loss, own)
    with weave.record():
        pass


@pytest.mark.parametrize("reentrant", [False, True])
def test_decisions_are_counted_once_under_checkpointing(trainee, reentrant):
    model, weave, batch = trainee
    counted = []

    def count(routing):
        counted.append({site: len(decisions) for site, decisions in routing.decisions.items()})
        return routing.newest_share("soft") if not reentrant else torch.zeros(())

    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    with weave.add_to_loss(count):
        model(**batch).loss.backward()
        model(**batch).loss.backward()
    assert counted == [{site.name: 1 for site in weave.sites}] * 2


def test_evaluation_and_the_disabled_pool_keep_their_loss(trainee):
    model, weave, batch = trainee
    with weave.add_to_loss(VETERAN):
        with weave.disabled():
            base = model(**batch).loss
        model.eval()
        with torch.no_grad(), weave.record() as routing:  # one may record for oneself
            assert torch.equal(model(**batch).loss, base)
    assert routing.all()


def test_a_forward_without_a_loss_is_refused(trainee):
    model, weave, batch = trainee
    with weave.add_to_loss(VETERAN):
        with pytest.raises(prw.RoutingError, match="has no scalar loss"):
            model(batch["input_ids"])
        with pytest.raises(prw.RoutingError, match="has no scalar loss"):
            model(batch["input_ids"], return_dict=False)
        with pytest.raises(prw.PoolError, match="being recorded already"), weave.record():
            model(**batch)
        model(**batch).loss.backward()


def test_a_tuple_has_its_loss_first(trainee):
    model, weave, batch = trainee
    own = model(**batch, return_dict=False)
    with weave.add_to_loss(lambda routing: torch.tensor(2.0)):
        output = model(**batch, return_dict=False)
    assert type(output) is type(own)
    assert torch.equal(output[0], own[0] + 2.0)
    assert torch.equal(output[1], own[1])


def test_an_error_in_the_forward_comes_through_and_leaves_nothing_open(trainee):
    model, weave, batch = trainee

    def fail(module, args):
        raise ArithmeticError("in the middle")

    last = [module for name, module in model.named_modules() if name.endswith("lm_head")][-1]
    hook = last.register_forward_pre_hook(fail)
    with weave.add_to_loss(VETERAN):
        with pytest.raises(ArithmeticError, match="in the middle"):
            model(**batch)
        hook.remove()
        with weave.record():
            pass
        model(**batch).loss.backward()


def test_the_mask_of_the_batch_is_handed_on(trainee):
    model, weave, batch = trainee
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with weave.record() as routing:
        own = model(**batch, attention_mask=mask).loss
    with weave.add_to_loss(VETERAN, mask="attention_mask"):
        assert torch.equal(model(**batch, attention_mask=mask).loss, own + VETERAN(routing, mask=mask.bool()))
        assert VETERAN(routing, mask=mask.bool()) != VETERAN(routing)
        model(**batch)  # without a mask every token counts


class WithLoss(nn.Module):
    """A model of nobody's library, whose output is what it is told to be."""

    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, hidden):
        return self.kind(self.inner(hidden).mean())


class Output:
    def __init__(self, loss):
        self.loss = loss


@pytest.mark.parametrize("kind", [Output, lambda loss: {"loss": loss}, lambda loss: [loss]])
def test_any_output_with_a_loss_will_do(make_plain, kind):
    model = WithLoss(make_plain(), kind)
    weave = prw.inject(model, rank=2, experts=["a", "b"], noise=False)
    hidden = torch.randn(2, 4, 8)

    def read(output):
        return (
            output.loss
            if isinstance(output, Output)
            else next(iter(getattr(output, "values", output.copy)()))
        )

    own = read(model(hidden))
    with weave.add_to_loss(lambda routing: torch.tensor(3.0)):
        assert torch.equal(read(model(hidden)), own + 3.0)
    model.kind = lambda loss: loss.expand(3)
    with weave.add_to_loss(VETERAN), pytest.raises(prw.RoutingError, match="no scalar loss"):
        model(hidden)


def test_labels_are_shifted_where_transformers_shifts_them(trainee):
    model, _, batch = trainee
    assert set(SHIFTED) == {kind for kind, loss in LOSS_MAPPING.items() if loss is ForCausalLMLoss}
    labels = batch["labels"].clone()
    labels[0, :3] = -100
    kwargs = {"labels": labels, "num_items_in_batch": torch.tensor(20)}
    assert float(part_of_batch(model, kwargs)) == pytest.approx((4 + 6) / 20)
    assert float(part_of_batch(nn.Linear(1, 1), kwargs)) == pytest.approx((4 + 7) / 20)
    assert float(part_of_batch(model, {**kwargs, "shift_labels": labels})) == pytest.approx(11 / 20)
    assert part_of_batch(model, batch) == 1.0
    with pytest.raises(prw.RoutingError, match="without labels"):
        part_of_batch(model, {"num_items_in_batch": 3})


def test_what_could_only_fail_or_do_nothing_is_refused(trainee, make_plain):
    model, weave, batch = trainee
    with pytest.raises(prw.ConfigError, match="takes a function of the recorded routing, got a float"):
        weave.add_to_loss(0.5)
    other = prw.inject(make_plain(), rank=2, experts=["a"])
    with pytest.raises(prw.ConfigError, match="has no argument 'attn_mask', so no token would be masked"):
        other.add_to_loss(VETERAN, mask="attn_mask")
    with weave.add_to_loss(lambda routing: torch.zeros(2)), pytest.raises(prw.RoutingError, match="shape"):
        model(**batch)
    two = weave.add_to_loss(VETERAN), weave.add_to_loss(VETERAN)
    with pytest.raises(prw.PoolError, match="by another add_to_loss"):
        model(**batch)
    for added in two:
        added.remove()
    model(**batch)
