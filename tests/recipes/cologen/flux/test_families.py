"""A folder's own index says which family its base is of; what is offered, what is refused."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline

from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux import Flux2Model, FluxBase, FluxModel, generate, has_source_stream, load_base_model
from recipes.cologen.flux.families import FAMILIES
from recipes.cologen.flux.tiny import save_tiny_flux
from recipes.cologen.tools.random_flux2 import build_random_flux2, write_random_flux2
from tests.recipes.cologen.flux.conftest import Build

INDEX = "model_index.json"


@pytest.fixture
def klein(tmp_path: Path) -> Path:
    """A small FLUX.2 base in its folder."""
    write_random_flux2(tmp_path / "klein", dtype=torch.float32)
    return tmp_path / "klein"


def rename(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(
        json.dumps({key: value for key, value in (index | changes).items() if value is not None})
    )


def test_the_index_decides_the_family(build: Build, klein: Path, tmp_path: Path) -> None:
    save_tiny_flux(build(), tmp_path / "flux1", torch.float32)
    assert type(load_base_model(tmp_path / "flux1")) is FluxModel
    rename(tmp_path / "flux1", _class_name="FluxKontextPipeline")
    assert type(load_base_model(tmp_path / "flux1")) is FluxModel
    model = load_base_model(klein, torch.bfloat16, max_text_tokens=100)
    assert type(model) is Flux2Model and model.max_text_tokens == 100
    assert {parameter.dtype for part in model.modules() for parameter in part.parameters()} == {
        torch.bfloat16
    }


def test_a_loaded_base_is_whole_frozen_in_eval_mode_and_follows_from_its_seed(klein: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model, built = load_base_model(klein), build_random_flux2()
    assert torch.equal(torch.rand(1), expected)
    assert has_source_stream(model.transformer) and model.max_text_tokens == 128
    for part, own in zip(model.modules(), built.modules(), strict=True):
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
        mine = own.state_dict()
        assert all(torch.equal(value, mine[key]) for key, value in part.state_dict().items())


def test_stock_klein_draws_from_the_folder_what_the_loaded_base_draws(klein: Path) -> None:
    pipeline = Flux2KleinPipeline.from_pretrained(klein)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"height": 32, "width": 48}
    drawn = pipeline(
        prompt="a red circle",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=128,
        output_type="pt",
        **asked,
    ).images
    ours = generate(load_base_model(klein), ["a red circle"], generator=5, steps=2, **asked)
    torch.testing.assert_close(drawn, ours / 2 + 0.5, rtol=0, atol=1e-5)  # its VAE's weights lie elsewhere


def test_a_base_of_the_kv_pipeline_is_distilled_and_gets_the_source_stream(klein: Path) -> None:
    stock = Flux2KleinKVPipeline(**Flux2KleinPipeline.from_pretrained(klein).components)
    stock.save_pretrained(klein)
    assert json.loads((klein / INDEX).read_text())["_class_name"] == "Flux2KleinKVPipeline"
    rename(klein, is_distilled=None)
    model = load_base_model(klein)
    assert isinstance(model, Flux2Model) and model.is_distilled and has_source_stream(model.transformer)
    rename(klein, _class_name="Flux2KleinPipeline", is_distilled=False)
    assert (
        not load_base_model(klein).is_distilled and not load_base_model(klein).pipeline().config.is_distilled
    )


@pytest.mark.parametrize("named", ["Flux2Pipeline", "FluxFillPipeline", "StableDiffusion3Pipeline", None])
def test_another_family_is_refused_with_the_way_to_add_it(klein: Path, named: str | None) -> None:
    rename(klein, _class_name=named)
    with pytest.raises(
        BaseModelError, match=rf"names a {named or 'pipeline of unknown class'}; .*Flux2Klein"
    ) as said:
        load_base_model(klein)
    assert "flux/base.py" in str(said.value) and "Another MMDiT" in str(said.value)


def test_a_klein_folder_without_a_part_is_refused(klein: Path) -> None:
    rename(klein, text_encoder=[None, None])
    with pytest.raises(BaseModelError, match=r"without text_encoder, which a FLUX\.2 klein base has"):
        load_base_model(klein)


@pytest.mark.parametrize("family", sorted(set(FAMILIES.values()), key=str))
def test_every_family_offers_what_the_protocol_asks(family: type) -> None:
    asked = {name for name in vars(FluxBase) if not name.startswith("_")} | set(FluxBase.__annotations__)
    fields = set(inspect.signature(family).parameters)
    assert len(asked) > 15 and {name for name in asked if not hasattr(family, name)} <= fields
    for name in asked:
        wanted, offered = getattr(FluxBase, name, None), getattr(family, name, None)
        if inspect.isfunction(wanted):
            assert list(inspect.signature(wanted).parameters) == list(inspect.signature(offered).parameters)
