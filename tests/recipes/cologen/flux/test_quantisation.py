"""A quantised frozen base trains its experts in float32; what this machine cannot do is refused."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import prw
from recipes.cologen.errors import MachineError
from recipes.cologen.flux import FluxModel, ImageTokens
from recipes.cologen.tools.random_flux1 import write_random_flux

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    write_random_flux(path, double_blocks=1, single_blocks=1)
    return path


def velocity(model: FluxModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = ImageTokens(torch.randn(2, 6, 64, generator=generator), rows=2, columns=3)
    text = model.encode_prompts(["a cat", "red"])
    return model.velocity(noise, torch.tensor([0.3, 0.8]), text, noise, guidance=1.0)


@needs_torchao
@pytest.mark.parametrize("kind", ["torchao_int8", "torchao_fp8"])
def test_experts_learn_in_float32_on_a_base_of_8_bits(folder: Path, kind: str) -> None:
    plain = FluxModel.load(folder, torch.bfloat16, max_text_tokens=24)
    model = FluxModel.load(folder, torch.bfloat16, max_text_tokens=24, quantisation=kind)
    attn = model.transformer.transformer_blocks[0].attn
    assert "torchao" in type(attn.to_k.weight.data).__module__
    assert "torchao" not in type(model.text_encoder_2.shared.weight.data).__module__
    torch.testing.assert_close(velocity(model), velocity(plain), rtol=0.1, atol=0.1)

    frozen = attn.to_k.weight.dequantize().clone()
    weave = prw.inject(model.transformer, experts=["a"], rank=4)
    model.transformer.train()
    trained = weave.trainable_parameters()
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):  # B starts at zero, so A moves from the second step on
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            velocity(model).float().square().mean().backward()
        optimizer.step()
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    moved = [not torch.equal(old, new) for old, new in zip(before, trained, strict=True)]
    assert sum(moved) >= len(moved) // 2
    base = model.transformer.transformer_blocks[0].attn.to_k
    weight = next(value for name, value in base.named_parameters() if name.endswith("base_layer.weight"))
    assert torch.equal(weight.dequantize(), frozen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no error")
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_without_a_gpu_is_refused_with_what_works(folder: Path, kind: str) -> None:
    with pytest.raises(MachineError, match=rf"base\.quantisation={kind} needs a GPU.*torchao_int8"):
        FluxModel.load(folder, torch.bfloat16, quantisation=kind)


@pytest.mark.parametrize(("kind", "package"), [("nf4", "bitsandbytes"), ("torchao_fp8", "torchao")])
def test_a_missing_package_is_named(
    folder: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"recipes.cologen.flux.quantisation.is_{package}_available", lambda: False)
    with pytest.raises(MachineError, match=f"pip install {package}"):
        FluxModel.load(folder, torch.bfloat16, quantisation=kind)
