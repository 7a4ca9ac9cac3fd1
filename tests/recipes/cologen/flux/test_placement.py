"""How a base is put on a machine changes where and how it is computed, not what."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

import prw
from recipes.cologen.config.model import MachineSettings
from recipes.cologen.errors import MachineError
from recipes.cologen.flux import FluxModel, ImageTokens, TextTokens
from recipes.cologen.flux.placement import place
from recipes.cologen.tools.random_flux1 import write_random_flux

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    write_random_flux(path, dtype=torch.float32, double_blocks=1, single_blocks=2)
    return path


@pytest.fixture
def own_attention() -> Iterator[None]:
    """Put diffusers' process-wide choice back."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def placed(folder: Path, **settings: object) -> FluxModel:
    model = FluxModel.load(folder, max_text_tokens=24)
    place(model, MachineSettings(**settings), CPU)
    return model


def trained_once(model: FluxModel, **options: int) -> dict[str, torch.Tensor]:
    """Velocity, decisions and gradients of a pool of two experts on a batch with sources."""
    weave = prw.inject(model.transformer, experts=["a", "b"], rank=4, noise=False, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.transformer.named_parameters()):
            if ".prw_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    weave.model.train()
    noise = ImageTokens(torch.randn(2, 6, 64, generator=generator), rows=2, columns=3)
    source = ImageTokens(torch.randn(2, 4, 64, generator=generator), rows=2, columns=2)
    text = TextTokens(torch.randn(2, 5, 32, generator=generator), torch.randn(2, 32, generator=generator))
    with weave.record() as routing:
        velocity = model.velocity(
            noise, torch.tensor([0.3, 0.8]), text, source, source_timestep="zero", guidance=1.0
        )
    (velocity.square().mean() + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.transformer.named_parameters()
        if parameter.grad is not None
    }
    return {"velocity": velocity.detach(), "usage": routing.usage().detach(), **gradients}


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second) and len(first) > 10
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_encoders_offloaded_layer_by_layer_give_the_same_and_hold_no_memory(folder: Path) -> None:
    resident, offloaded = placed(folder), placed(folder, encoders="sequential_offload")
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    for _ in range(2):
        expected, found = (model.encode_prompts(["a cat", "red"]) for model in (resident, offloaded))
        assert torch.equal(expected.embeds, found.embeds) and torch.equal(expected.pooled, found.pooled)
        images = [model.encode_images(pixels) for model in (resident, offloaded)]
        assert torch.equal(images[0].tokens, images[1].tokens)
        assert torch.equal(resident.decode(images[0]), offloaded.decode(images[0]))
        for part in (offloaded.vae, offloaded.text_encoder, offloaded.text_encoder_2):
            assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
    assert {p.device.type for p in offloaded.transformer.parameters()} == {"cpu"}


# torch's compiler looks at the .grad of a block's inputs, which come from other blocks, and warns of itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_route_and_learn_alike(folder: Path) -> None:
    # Training and evaluation, and a pool that grows, are several traces of one block; torch allows 8.
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        eager = trained_once(placed(folder))
        model = placed(folder, compile=True, compile_backend="eager")
        torch._dynamo.reset()
        compiled = trained_once(model)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_close(eager, compiled)
    torch._dynamo.reset()


def test_a_backend_that_torch_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(MachineError, match=r"machine\.compile_backend is 'fastest'.*inductor"):
        placed(folder, compile=True, compile_backend="fastest")


def test_another_attention_is_used_and_gives_the_same(folder: Path, own_attention: None) -> None:
    expected = trained_once(placed(folder))
    model = placed(folder, attention="_native_math")
    chosen = {attn.processor._attention_backend for attn in attentions(model)}
    assert {backend.value for backend in chosen} == {"_native_math"}
    assert_close(expected, trained_once(model))


def attentions(model: FluxModel) -> list[torch.nn.Module]:
    return [module for module in model.transformer.modules() if hasattr(module, "processor")]


@pytest.mark.parametrize("backend", ["flash", "xformers", "fastest"])
def test_attention_that_is_not_there_is_refused(folder: Path, own_attention: None, backend: str) -> None:
    with pytest.raises(MachineError, match=rf"machine\.attention={backend} cannot be used"):
        placed(folder, attention=backend)
