"""Quantised bases: bitsandbytes 4-bit and 8-bit and torchao int8, under one and the same layer class."""

from __future__ import annotations

from collections.abc import Callable

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import prw
from prw.tuner import PrwLinear
from tests.prw.conftest import Plain

KV = ("to_k", "to_v")
WIDTH = 64  # bitsandbytes quantises blocks of 64


def four_bit(linear: nn.Linear) -> nn.Module:
    made = bnb.nn.Linear4bit(WIDTH, WIDTH, compute_dtype=torch.float32, quant_type="nf4")
    made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = linear.bias
    return portable(made.to("cpu"))


def portable(model: nn.Module) -> nn.Module:
    """Keep bitsandbytes from packing 4-bit weights, as it does on some CPUs: packed, they cannot train."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def eight_bit(linear: nn.Linear) -> nn.Module:
    made = bnb.nn.Linear8bitLt(WIDTH, WIDTH, has_fp16_weights=False)
    made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    return made.to("cpu")


def torchao_int8(linear: nn.Linear) -> nn.Module:
    holder = nn.Sequential(linear)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder[0]


def values(linear: nn.Module) -> Tensor:
    """What the quantised weight stands for, as its own library reads it."""
    weight = linear.weight
    if isinstance(linear, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    if isinstance(linear, bnb.nn.Linear8bitLt):
        held = weight if weight.CB is not None else linear.state  # the first forward moves it
        return held.CB.float() * held.SCB.unsqueeze(-1) / 127
    return weight.dequantize()


QUANTISED = {"bnb4": four_bit, "bnb8": eight_bit, "ao8": torchao_int8}


@pytest.fixture(params=list(QUANTISED))
def quantise(request: pytest.FixtureRequest) -> Callable[[nn.Linear], nn.Module]:
    return QUANTISED[request.param]


def replaced(quantise: Callable[[nn.Linear], nn.Module], seed: int = 0) -> Plain:
    """A plain attention stack with every projection quantised."""
    torch.manual_seed(seed)
    model = Plain(WIDTH)
    for block in model.blocks:
        for name in ("to_q", "to_k", "to_v"):
            setattr(block, name, quantise(getattr(block, name)))
    return model.eval()


def hidden(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def test_it_is_the_identity_with_one_layer_class_and_float32_experts(quantise):
    model = replaced(quantise)
    before, own = model(hidden()), [block.to_k for block in model.blocks]
    weave = prw.inject(model, rank=4, experts=["a", "b"])
    assert torch.equal(model(hidden()), before)
    assert len(weave.sites) == 2
    assert all(type(block.to_k) is PrwLinear for block in model.blocks)
    experts = [p for name, p in model.named_parameters() if ".prw_" in name]
    assert {p.dtype for p in experts} == {torch.float32}
    with weave.disabled():
        assert torch.equal(model(hidden()), before)
    weave.eject()
    assert [block.to_k for block in model.blocks] == own
    assert torch.equal(model(hidden()), before)


def test_a_step_moves_the_newest_expert_and_its_gates_only(quantise, wake):
    model = replaced(quantise).train()
    weave = prw.inject(model, rank=4, experts=["a"])
    weave.add_expert("b")
    wake(weave)
    base = [values(getattr(block, name).get_base_layer()).clone() for block in model.blocks for name in KV]
    frozen = {name: p.clone() for name, p in model.named_parameters() if ".prw_" in name}
    steps = torch.optim.AdamW(weave.trainable_parameters(), lr=1e-2, weight_decay=0.1)
    with weave.record() as routing:
        loss = model(hidden()).square().mean() + prw.veteran_loss(routing, rho=0.8, alpha=0.5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weave.trainable_parameters())
    assert any(p.grad.any() for p in weave.trainable_parameters())
    steps.step()
    moved = {name.split(".prw_")[1].split(".")[0] for name in frozen if moved_now(model, name, frozen)}
    assert moved == {"A1", "B1", "gate1", "noise1"}
    now = [values(getattr(block, name).get_base_layer()) for block in model.blocks for name in KV]
    assert all(torch.equal(x, y) for x, y in zip(base, now, strict=True))


def moved_now(model: nn.Module, name: str, before: dict[str, Tensor]) -> bool:
    return not torch.equal(model.get_parameter(name), before[name])


def test_gradients_reach_experts_below_quantised_layers(quantise, wake):
    model = replaced(quantise)
    weave = prw.inject(model, rank=4, experts=["a", "b"], target=["blocks.0.to_k", "blocks.0.to_v"])
    wake(weave)
    model(hidden()).square().mean().backward()
    assert all(p.grad is not None for p in weave.trainable_parameters())
    assert any(p.grad.any() for p in weave.trainable_parameters())


def test_save_and_load_are_exact_also_onto_the_unquantised_base(quantise, wake, tmp_path):
    model = replaced(quantise)
    weave = prw.inject(model, rank=4, experts=["a", "b"])
    wake(weave)
    expected = model(hidden())
    weave.save_pretrained(tmp_path)
    again = replaced(quantise)
    prw.load(again, tmp_path)
    assert torch.equal(again(hidden()), expected)
    torch.manual_seed(0)
    plain = Plain(WIDTH).eval()
    base = plain(hidden())
    lost = (replaced(quantise)(hidden()) - base).abs().max()  # by quantisation, on this CPU
    assert prw.load(plain, tmp_path).experts == ("a", "b")
    assert (plain(hidden()) - expected).abs().max() < 2 * lost < (plain(hidden()) - base).abs().max()


def test_it_is_close_to_the_same_model_dequantised(quantise, wake):
    model, plain = replaced(quantise), replaced(lambda linear: linear)
    for block, exact in zip(model.blocks, plain.blocks, strict=True):
        for name in ("to_q", *KV):
            getattr(exact, name).weight.data.copy_(values(getattr(block, name)))
    outputs = []
    for each in (model, plain):
        torch.manual_seed(5)
        weave = prw.inject(each, rank=4, experts=["a", "b"])
        wake(weave)
        outputs.append(each(hidden()))
    assert torch.allclose(*outputs, atol=2e-2)
    assert not torch.allclose(outputs[0], replaced(quantise)(hidden()), atol=2e-2), "the experts act"


def test_growth_as_of_and_batch_mates(quantise, wake):
    model = replaced(quantise)
    weave = prw.inject(model, rank=4, experts=["a"])
    wake(weave)
    stage = model(hidden())
    weave.add_expert("b")
    with weave.as_of("a"):
        assert torch.equal(model(hidden()), stage)
    alone = torch.cat([model(hidden()[:1]), model(hidden()[1:])])
    assert torch.allclose(model(hidden()), alone, atol=2e-2)


def test_quantising_a_model_that_has_a_pool_passes_over_the_experts(wake):
    model = replaced(lambda linear: linear)
    weave = prw.inject(model, rank=4, experts=["a", "b"])
    wake(weave)
    before = {name: p.clone() for name, p in model.named_parameters() if ".prw_" in name}
    quantize_(model, Int8WeightOnlyConfig())
    assert type(model.blocks[0].to_k.get_base_layer().weight) is not nn.Parameter
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in before.items())
    model(hidden()).square().mean().backward()
    assert all(p.grad is not None for p in weave.trainable_parameters())


@pytest.fixture
def folder(tmp_path, make_host):
    """A saved Llama, to be read in 4 bits."""
    host = make_host("llama")
    host.model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", host.inputs


def in_four_bits(folder):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return portable(AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).eval())


def test_transformers_own_four_bit_loading_and_peft(folder, wake, tmp_path):
    base, inputs = folder
    model = in_four_bits(base)
    before = model(**inputs).logits
    assert any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    wrapped = get_peft_model(prepared, prw.PrwConfig(rank=2, experts=["a"]))
    assert torch.allclose(wrapped(**inputs).logits, before, atol=1e-5)
    wake(prw.Weave(wrapped))
    wrapped.eval()
    expected = wrapped(**inputs).logits
    wrapped.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(in_four_bits(base), tmp_path / "adapter").eval()
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
