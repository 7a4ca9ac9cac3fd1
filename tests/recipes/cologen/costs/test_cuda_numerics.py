"""CUDA's numerics on a CPU: dtypes under autocast, a fused norm, layers that give back the dtype they got."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.cologen.costs.cuda_numerics import FLOAT32_UNDER_AUTOCAST, CudaNumerics, backward, quantise
from recipes.cologen.costs.live_bytes import saved_bytes

HALF = torch.bfloat16


def numbers(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, (8,)),
        lambda x: F.rms_norm(x, (8,)),
        lambda x: F.softmax(x, -1),
        lambda x: x.softmax(-1),
        lambda x: torch.rsqrt(x.square() + 1),
        lambda x: x.pow(2),
        lambda x: x**2,
        lambda x: x.sum(-1),
        F.softplus,
        nn.LayerNorm(8, elementwise_affine=False),
        nn.RMSNorm(8, dtype=HALF),
    ],
)
def test_what_cuda_widens_under_autocast_is_widened_there_only(function) -> None:
    hidden = numbers(2, 8)
    with CudaNumerics():
        assert function(hidden).dtype == HALF
        with torch.autocast("cpu", HALF):
            widened = function(hidden)
            assert F.gelu(hidden).dtype == F.linear(hidden.float(), hidden).dtype == HALF
    assert widened.dtype == torch.float32
    with torch.autocast("cpu", HALF):
        assert function(hidden).dtype == HALF  # the CPU's own policy: the difference that was not seen


def test_the_names_are_those_of_torchs_list() -> None:
    known = (torch, F, Tensor, torch.linalg)
    assert [name for name in FLOAT32_UNDER_AUTOCAST if not any(hasattr(place, name) for place in known)] == []


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_norm_is_torchs_and_saves_its_input_and_a_number_a_row(weighted: bool) -> None:
    hidden, weight = numbers(3, 5, 8, dtype=torch.float32), torch.rand(8) if weighted else None
    expected = F.rms_norm(hidden, (8,), weight, 1e-6)
    (wanted,) = torch.autograd.grad(expected.square().sum(), hidden)
    with CudaNumerics(), saved_bytes([hidden] if weight is None else [hidden, weight]) as saved:
        normed = F.rms_norm(hidden, (8,), weight, 1e-6)
        assert saved == [3 * 5 * 4]
        (found,) = torch.autograd.grad(normed.square().sum(), hidden)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(found, wanted)


def test_a_checkpointed_block_is_computed_again_with_the_same_numerics() -> None:
    hidden, norm = numbers(2, 8), nn.LayerNorm(8, elementwise_affine=False)
    with CudaNumerics(), torch.autocast("cpu", HALF):
        normed = torch.utils.checkpoint.checkpoint(norm, hidden, use_reentrant=False)
        backward(normed.square().mean())
    assert hidden.grad is not None and hidden.grad.dtype == HALF


@pytest.mark.parametrize("given", [torch.float32, HALF])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_layers_give_back_the_dtype_that_they_were_given(kind: str, given: torch.dtype) -> None:
    layer = nn.Sequential(nn.Linear(8, 4, dtype=HALF)).requires_grad_(False)
    quantise(layer, kind)
    hidden = numbers(2, 8, dtype=given)
    with torch.autocast("cpu", HALF), saved_bytes(layer.parameters()) as saved:
        output = layer(hidden)
    assert output.dtype == given and sum(saved) == (0 if kind == "nf4" else hidden.nbytes)
    output.float().sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == given
    plain = nn.Linear(8, 4, dtype=HALF)
    quantise(plain, "torchao_fp8")
    with torch.autocast("cpu", HALF):
        assert type(plain) is nn.Linear and plain(hidden).dtype == HALF


def test_the_4_bit_layer_is_bitsandbytes_by_its_dtypes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    real = bitsandbytes.nn.Linear4bit(64, 64, bias=True, compute_dtype=HALF, quant_type="nf4")
    real.load_state_dict(nn.Linear(64, 64, dtype=HALF).state_dict())
    real = real.to("cpu").requires_grad_(False)
    for given in (torch.float32, HALF):
        hidden = numbers(2, 64, dtype=given)
        with torch.autocast("cpu", HALF), saved_bytes(real.parameters()) as saved:
            assert real(hidden).dtype == given
        assert sum(saved) < hidden.nbytes  # its input is not kept
