"""The base's output is added to in place only where nothing else has it; other tensors keep their bits."""

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

import prw
from prw.layers.routed_linear import writable
from prw.tuner import PrwLinear, PrwModel
from tests.prw.conftest import Plain

KERNELS = ("dense", "grouped")


def woven(kernel, wake, change=None, model=None, **settings):
    torch.manual_seed(3)
    model = Plain(blocks=1) if model is None else model
    if change is not None:
        change(model)
    weave = prw.inject(model.eval(), rank=2, experts=["a", "b"], kernel=kernel, **settings)
    wake(weave)
    return model, weave


def outputs_and_gradients(model, weave, hidden):
    hidden = hidden.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(hidden)
    output.square().sum().backward()
    return [output.detach(), hidden.grad, *(p.grad.clone() for p in weave.trainable_parameters())]


def near(got, wanted):
    return all(torch.allclose(x, y, atol=1e-5, rtol=1e-4) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("where", ["hook", "hook with kwargs", "global hook", "forward wrapped"])
def test_what_a_hook_has_kept_keeps_its_bits(wake, kernel, dims, where):
    kept = []

    def keep(module, inputs, *rest):
        if module is base:
            kept.append(rest[-1])

    model, _ = woven(kernel, wake)
    base = model.blocks[0].to_k.base_layer
    handle = None
    if where == "hook":
        base.register_forward_hook(keep)
    elif where == "hook with kwargs":
        base.register_forward_hook(keep, with_kwargs=True)
    elif where == "global hook":
        handle = nn.modules.module.register_module_forward_hook(keep)
    else:
        plainly = base.forward

        def forward(hidden):
            kept.append(plainly(hidden))
            return kept[-1]

        base.forward = forward
    hidden = torch.randn(*(2, 5, 8)[3 - dims :])
    try:
        output = model.blocks[0].to_k(hidden)
    finally:
        if handle is not None:
            handle.remove()
    assert len(kept) == 1
    assert torch.equal(kept[0], F.linear(hidden, base.weight, base.bias))
    assert not torch.equal(output, kept[0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_see_their_gradients(wake, kernel, hook):
    model, weave = woven(kernel, wake)
    hidden, seen = torch.randn(2, 5, 8), []
    wanted = outputs_and_gradients(model, weave, hidden)
    getattr(model.blocks[0].to_k.base_layer, hook)(lambda module, *grads: seen.append(grads))
    assert near(outputs_and_gradients(model, weave, hidden), wanted)
    assert len(seen) == 1


class Cached(nn.Linear):
    """A Linear of another library that keeps and gives again what it once made."""

    def forward(self, hidden):
        if not hasattr(self, "kept"):
            self.kept = super().forward(hidden)
        return self.kept


class Same(nn.Linear):
    """A Linear that gives its input."""

    def forward(self, hidden):
        return hidden


class Viewed(nn.Linear):
    """A Linear that gives a part of something larger."""

    def forward(self, hidden):
        self.whole = torch.cat([super().forward(hidden), super().forward(hidden)], dim=-1)
        return self.whole[..., : self.out_features]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [Cached, Same, Viewed])
@pytest.mark.parametrize("grad", [False, True])
def test_a_base_may_give_its_input_or_what_it_keeps(wake, kernel, kind, grad):
    def change(model):
        for name in ("to_k", "to_v"):
            plain, other = getattr(model.blocks[0], name), kind(8, 8)
            other.load_state_dict(plain.state_dict())
            setattr(model.blocks[0], name, other)

    model, weave = woven(kernel, wake, change)
    projection, hidden = model.blocks[0].to_k, torch.randn(2, 5, 8)
    before = hidden.clone()
    with torch.set_grad_enabled(grad):
        first = projection(hidden).clone()
        second = projection(hidden)
    assert torch.equal(hidden, before)
    assert torch.equal(first, second), "nothing that is kept was added to"
    with weave.disabled():
        assert not torch.equal(projection(hidden), first)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("state", ["on", "off", "merged"])
def test_inside_a_lora_tensors_of_the_base_keep_their_bits(wake, kernel, state):
    """A pool goes inside the LoRA that is there; a hook of the base may have kept what the base gave."""
    lora = get_peft_model(Plain(blocks=1), LoraConfig(target_modules=["to_k", "to_v"], r=2))
    config = prw.PrwConfig(target_modules=["to_k", "to_v"], experts=["a", "b"], rank=2, kernel=kernel)
    model = lora.base_model.model.eval()
    with pytest.warns(UserWarning):  # of PEFT and of prw: the LoRA is switched off
        PrwModel(model, config, "pool")
    outer = model.blocks[0].to_k
    inner, linear, kept = outer.base_layer, outer.get_base_layer(), []
    wake(prw.Weave(model, adapter="pool"))
    assert type(outer).__module__.startswith("peft.") and isinstance(inner, PrwLinear)
    outer.enable_adapters(state != "off")
    if state == "merged":
        outer.merge(adapter_names=["default"])
    linear.register_forward_hook(lambda module, inputs, output: kept.append(output))
    hidden = torch.randn(2, 5, 8)
    output = outer(hidden)
    assert torch.equal(kept[0], F.linear(hidden, linear.weight, linear.bias))
    inner.sites["pool"].pool.kernel = "reference"
    assert torch.allclose(outer(hidden), output, atol=1e-5)
    assert not torch.allclose(outer(hidden, routed=False), output, atol=1e-3)


def quantised(kind):
    def change(model):
        for name in ("to_k", "to_v"):
            plain = getattr(model.blocks[0], name)
            if kind == "4 bit":
                made = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
                made.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
            else:
                made = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
                made.weight = bnb.nn.Int8Params(
                    plain.weight.data, requires_grad=False, has_fp16_weights=False
                )
            made.bias = plain.bias
            made = made.to("cpu")
            made.support_avx512bf16_for_cpu = False  # packed, it cannot train
            setattr(model.blocks[0], name, made)

    return change


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["4 bit", "8 bit"])
def test_a_quantised_base_gives_the_same_as_with_the_reference(wake, kernel, kind):
    hidden, found = torch.randn(2, 5, 64), []
    for name in (kernel, "reference"):
        torch.manual_seed(3)
        model, weave = woven(name, wake, quantised(kind), Plain(width=64, blocks=1))
        found.append(outputs_and_gradients(model, weave, hidden))
        with weave.disabled():
            base = model(hidden).detach()
        found[-1].append(base)
    assert near(*found)
    assert torch.equal(found[0][-1], found[1][-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_plain_base_is_added_to_in_place(dims):
    """Else a tensor as wide as the output would be written once more."""
    base, hidden = nn.Linear(8, 6), torch.randn(*(2, 5, 8)[3 - dims :], requires_grad=True)
    for trains in (True, False):
        base.requires_grad_(trains)
        output = base(hidden)
        assert writable(output, base, hidden).data_ptr() == output.data_ptr()


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_pools_at_once_add_up(wake, kernel):
    model, _ = woven(kernel, wake)
    hidden = torch.randn(2, 5, 8)
    key = model.blocks[0].to_k
    second = prw.inject(model, rank=2, experts=["x"], adapter="other", kernel=kernel)
    wake(second)
    alone = {}
    for name in ("default", "other", "both"):
        key._active_adapter = ["default", "other"] if name == "both" else [name]
        alone[name] = key(hidden)
    base = F.linear(hidden, key.base_layer.weight, key.base_layer.bias)
    assert torch.allclose(alone["both"] - base, alone["default"] + alone["other"] - 2 * base, atol=1e-5)
    assert not torch.allclose(alone["other"], base, atol=1e-3)
    alone["both"].sum().backward()
    assert key.prw_B0["other"].weight.grad.any()
