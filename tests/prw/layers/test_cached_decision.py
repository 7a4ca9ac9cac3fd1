"""K leaves its decision and dispatch plan for V: called alone, twice, in any order, it stays right."""

import copy
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import prw
from tests.prw.conftest import Plain

KERNELS = ("dense", "grouped")


def woven(kernel, wake, blocks=1, **settings):
    torch.manual_seed(3)
    model = Plain(blocks=blocks).eval()
    weave = prw.inject(model, rank=2, experts=["a", "b", "c"], kernel=kernel, **settings)
    wake(weave)
    return model, weave


def gradients(model, weave, run):
    model.zero_grad()
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = run(model.blocks[0], hidden)
    loss.backward()
    return [loss.detach(), hidden.grad, *(p.grad for p in weave.trainable_parameters())]


def agree(got, wanted, exact=False):
    for mine, other in zip(got, wanted, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert torch.equal(mine, other) if exact else torch.allclose(mine, other, atol=1e-5)


CALLS = {
    "K alone": lambda block, x: block.to_k(x).square().sum(),
    "V alone": lambda block, x: block.to_v(x).square().sum(),
    "both": lambda block, x: (block.to_k(x) * block.to_v(x)).sum(),
    "V first": lambda block, x: (block.to_v(x) * block.to_k(x)).sum(),
    "V of another input": lambda block, x: (block.to_k(x) * block.to_v(x * 2)).sum(),
    "V of fewer rows": lambda block, x: block.to_k(x).square().sum() + block.to_v(x[:1, :2]).sum(),
    "K twice": lambda block, x: (block.to_k(x) * block.to_k(x) * block.to_v(x)).sum(),
    "V twice": lambda block, x: (block.to_k(x) * block.to_v(x) * block.to_v(x)).sum(),
    "only K counts": lambda block, x: (block.to_v(x), block.to_k(x).square().sum())[1],
    "only V counts": lambda block, x: (block.to_k(x), block.to_v(x).square().sum())[1],
    "K without gradients": lambda block, x: (without(block.to_k, x) * block.to_v(x)).sum(),
}


def without(projection, hidden):
    with torch.no_grad():
        return projection(hidden)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_however_they_are_called_the_reference_agrees(wake, kernel, call, granularity):
    settings = {"granularity": granularity}
    got = gradients(*woven(kernel, wake, **settings), CALLS[call])
    wanted = gradients(*woven("reference", wake, **settings), CALLS[call])
    agree(got, fill(got, wanted))


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_input_that_was_changed_in_between_is_read_again(wake, kernel):
    model, _ = woven(kernel, wake)
    block, hidden = model.blocks[0], torch.randn(2, 5, 8)
    with torch.no_grad():
        wanted = block.to_v(hidden * 3)
        block.to_k(hidden)
        assert torch.equal(block.to_v(hidden.mul_(3)), wanted)


def fill(got, wanted):
    """Zeros for what a kernel gives zeros of and the reference nothing, as K where only V counts."""
    return [
        torch.zeros_like(mine) if other is None and mine is not None and not mine.any() else other
        for mine, other in zip(got, wanted, strict=True)
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_both_in_one_go_are_the_bits_of_each_alone(wake, kernel):
    model, _ = woven(kernel, wake)
    block, hidden = model.blocks[0], torch.randn(2, 5, 8)
    together = block.to_k(hidden), block.to_v(hidden)
    assert torch.equal(block.to_k(hidden.clone()), together[0])
    assert torch.equal(block.to_v(hidden.clone()), together[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_accumulate_and_a_retained_graph_gives_them_again(wake, kernel):
    model, weave = woven(kernel, wake)
    hidden = torch.randn(2, 5, 8)
    loss = model(hidden).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in weave.trainable_parameters()]
    loss.backward()
    agree([p.grad / 2 for p in weave.trainable_parameters()], once)
    model(hidden).square().sum().backward()
    agree([p.grad / 3 for p in weave.trainable_parameters()], once)


@pytest.mark.parametrize("kernel", KERNELS)
def test_second_derivatives_are_refused_in_a_sentence_and_the_reference_has_them(wake, kernel):
    for name in (kernel, "reference"):
        model, _ = woven(name, wake)
        hidden = torch.randn(2, 5, 8, requires_grad=True)
        (slope,) = torch.autograd.grad(model(hidden).square().sum(), hidden, create_graph=True)
        if name == "reference":
            slope.square().sum().backward()
            assert hidden.grad.any()
        else:
            with pytest.raises(RuntimeError, match=r"twice.*once_differentiable"):
                slope.square().sum().backward()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_weight_changed_between_forward_and_backward_is_told(wake, kernel):
    model, _ = woven(kernel, wake)
    loss = model(torch.randn(2, 5, 8)).square().sum()
    with torch.no_grad():
        model.blocks[0].to_k.prw_B0["default"].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# torch's own: what it scripts when forward gradients are first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kernel", KERNELS)
def test_function_transforms_and_forward_gradients(wake, kernel):
    model, _ = woven(kernel, wake)
    plain, _ = woven("reference", wake)
    hidden, way = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    small = 1e-3
    slope = (plain.double()(hidden.double() + small * way) - plain(hidden.double() - small * way)) / 2 / small
    assert torch.allclose(torch.func.jvp(model, (hidden,), (way,))[1].double(), slope, atol=1e-3)
    with forward_ad.dual_level():
        output = model(forward_ad.make_dual(hidden, way))
        assert torch.allclose(forward_ad.unpack_dual(output).tangent.double(), slope, atol=1e-3)
    mapped = torch.vmap(lambda row: model(row.unsqueeze(0)).squeeze(0))(hidden)
    assert torch.allclose(mapped, model(hidden), atol=1e-5)
    found = torch.func.grad(lambda x: model(x).square().sum())(hidden)
    leaf = hidden.clone().requires_grad_()
    model(leaf).square().sum().backward()
    assert torch.allclose(found, leaf.grad, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kernel", KERNELS)
def test_graphs_of_every_kind_hold_for_other_numbers(wake, kernel):
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    model, _ = woven(kernel, wake)
    first, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    wanted = model(other)
    with torch.no_grad():
        for made in (
            torch.jit.trace(model, (first,), check_trace=False),
            make_fx(model)(first),
            torch.export.export(model, (first,)).module(),
        ):
            assert torch.allclose(made(other), wanted, atol=1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(first)).shape == first.shape


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
@pytest.mark.parametrize("early", [True, False])
def test_checkpoints_change_no_bit_count_once_and_leave_nothing(wake, kernel, reentrant, early):
    model, weave = woven(kernel, wake, blocks=2, noise=False)

    def run(checkpointed):
        model.zero_grad()
        hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = hidden
        with weave.record() as routing:
            for block in model.blocks:
                out = checkpoint(block, out, use_reentrant=reentrant) if checkpointed else block(out)
            out.square().sum().backward()
        counted = sum(len(decisions) for decisions in routing.decisions.values())
        return [out.detach(), hidden.grad, *(p.grad.clone() for p in weave.trainable_parameters())], counted

    plain, once = run(False)
    with torch.utils.checkpoint.set_checkpoint_early_stop(early):
        again, counted = run(True)
    assert once == counted == 2
    agree(again, plain, exact=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_was_left_for_v_does_not_outlive_the_next_call(wake, kernel):
    import gc
    import weakref

    model, _ = woven(kernel, wake)
    key, hidden = model.blocks[0].to_k, torch.randn(2, 5, 8)
    key(hidden)
    left = weakref.ref(hidden)
    del hidden
    assert left() is not None
    model(torch.randn(2, 5, 8))
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_key_and_value_share_one_dispatch_plan(wake, kernel, monkeypatch):
    from prw.layers import site

    made, make_plan = [], site.make_plan
    monkeypatch.setattr(site, "make_plan", lambda *args: made.append(1) or make_plan(*args))
    model, _ = woven(kernel, wake, blocks=2)
    model(torch.randn(2, 5, 8))
    assert len(made) == 2, "one for each site"


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_do_not_meet(wake, kernel):
    model, _ = woven(kernel, wake)
    inputs = [torch.randn(2, 5, 8) for _ in range(4)]
    with torch.no_grad():
        wanted = [model(hidden) for hidden in inputs]
    wrong = []

    def work(hidden, expected):
        with torch.no_grad():
            wrong.extend(1 for _ in range(30) if not torch.equal(model(hidden), expected))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_copy_of_the_model_has_its_own_weights(wake, kernel):
    model, _ = woven(kernel, wake)
    hidden = torch.randn(2, 5, 8)
    before = model(hidden).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for path, weight in other.named_parameters():
            if ".prw_B" in path:
                weight.mul_(-2)
    assert not torch.allclose(other(hidden), before, atol=1e-3)
    assert torch.equal(model(hidden), before)
