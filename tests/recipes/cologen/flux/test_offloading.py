"""Offloaded encoders come to the device once, leave it before the transformer runs, and encode alike."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from recipes.cologen.config.model import MachineSettings
from recipes.cologen.flux import FluxModel, generate, load_base_model
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.offloading import OffloadedPart, compute_device
from recipes.cologen.flux.placement import place
from recipes.cologen.pipeline import pipeline_over
from recipes.cologen.tools.random_flux1 import write_random_flux
from recipes.cologen.tools.random_flux2 import write_random_flux2
from tests.other_rounding import aligned

CPU = torch.device("cpu")
WRITERS: dict[str, Callable[..., object]] = {"FLUX.1": write_random_flux, "FLUX.2": write_random_flux2}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    WRITERS[request.param](path, dtype=torch.float32)
    return path


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What comes and goes; here a copy on the same CPU stands for one on a device."""
    seen: list[str] = []
    show = OffloadedPart.show

    def copied(part: OffloadedPart, values: Sequence[torch.Tensor]) -> None:
        leaves = values is part.on_host
        seen.append("left" if leaves else "came")
        show(part, values if leaves else [value.clone() for value in values])

    monkeypatch.setattr(OffloadedPart, "show", copied)
    yield seen


def placed(folder: Path, **settings: str) -> FluxBase:
    model = load_base_model(folder, max_text_tokens=64)
    for part in model.modules():
        aligned(part)  # what is copied to a device is
    place(model, MachineSettings(**settings), CPU)
    return model


def addresses(model: FluxBase) -> list[int]:
    """Where the weights of all encoders lie."""
    _, *encoders = model.modules()
    return [weight.data_ptr() for encoder in encoders for weight in encoder.state_dict().values()]


def test_encoding_is_bit_equal_and_several_calls_cost_one_copy(folder: Path, copies: list[str]) -> None:
    resident, offloaded = placed(folder), placed(folder, encoders="offload")
    on_host, pixels = addresses(offloaded), torch.rand(2, 3, 32, 48) * 2 - 1
    for _ in range(3):
        expected, found = (model.encode_prompts(["a cat", "red"]) for model in (resident, offloaded))
        assert torch.equal(expected.embeds, found.embeds) and torch.equal(expected.pooled, found.pooled)
        images = [model.encode_images(pixels) for model in (resident, offloaded)]
        assert torch.equal(images[0].tokens, images[1].tokens)
    arrivals = len(copies)
    assert copies == ["came"] * arrivals and addresses(offloaded) != on_host
    text, noise = found, images[1]
    guidance = 1.0 if offloaded.reads_guidance else None
    velocity = [
        model.velocity(noise, torch.ones(2), text, noise, guidance=guidance)
        for model in (resident, offloaded)
    ]
    assert torch.equal(*velocity)
    assert copies == ["came"] * arrivals + ["left"] * arrivals and addresses(offloaded) == on_host
    assert torch.equal(resident.decode(noise), offloaded.decode(noise))


def test_no_weight_of_an_encoder_is_on_the_device_while_the_transformer_runs(
    folder: Path, copies: list[str]
) -> None:
    model = placed(folder, encoders="offload")
    on_host, seen = addresses(model), list[bool]()
    hook = model.transformer.register_forward_pre_hook(lambda *call: seen.append(addresses(model) == on_host))
    guidance = 2.0 if model.reads_guidance else None
    picture = generate(
        model,
        ["a cat"],
        torch.zeros(1, 3, 32, 48),
        generator=0,
        height=32,
        width=48,
        steps=3,
        guidance=guidance,
    )
    hook.remove()
    assert seen == [True] * 3
    plain = generate(
        placed(folder),
        ["a cat"],
        torch.zeros(1, 3, 32, 48),
        generator=0,
        height=32,
        width=48,
        steps=3,
        guidance=guidance,
    )
    assert torch.equal(picture, plain)


@pytest.mark.parametrize("encoders", ["resident", "offload", "sequential_offload"])
def test_the_pipeline_gives_the_vae_its_pictures_where_it_computes(
    folder: Path, encoders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device = load_base_model(folder, max_text_tokens=64), torch.device("meta")
    place(model, MachineSettings(encoders=encoders), device)
    pipe, seen = pipeline_over(model), list[torch.device]()

    def looked_at(pixels: torch.Tensor, *rest: object, **options: object) -> None:
        seen.append(pixels.device)
        raise StopIteration

    monkeypatch.setattr(pipe.vae, "encode", looked_at)
    monkeypatch.setattr(pipe.vae, "decode", looked_at)
    size = (2 * 2 * model.vae_scale_factor,) * 2
    with pytest.raises(StopIteration):
        pipe.family.encode(torch.zeros(1, 3, *size), torch.zeros(1))
    tokens = torch.zeros(1, 4, pipe.transformer.config.in_channels)
    with pytest.raises(StopIteration):
        pipe.family.decode(tokens, size, "pil")
    assert seen == [device, device] == [compute_device(pipe.vae)] * 2


def test_weights_that_no_part_holds_stay_on_the_device(copies: list[str]) -> None:
    base = Path(__file__).parents[4] / "recipes/cologen/assets/tiny_flux"
    model = FluxModel.load(base)  # its VAE has no weights but an anchor
    place(model, MachineSettings(encoders="offload"), CPU)
    model.encode_images(torch.zeros(1, 3, 16, 16))
    assert copies == []
