"""A base of random weights in the layout of FLUX.1-dev: what stock diffusers makes of it, and what we do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from transformers import CLIPTextModel, T5EncoderModel

from recipes.cologen.errors import GuidanceError
from recipes.cologen.flux import FluxModel, generate
from recipes.cologen.tools.random_flux1 import write_random_flux

PROMPT = "A café, 3 cats & the RED hat!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    write_random_flux(path, dtype=torch.float32)
    return path


def test_it_has_the_parts_and_rules_of_flux_dev(folder: Path) -> None:
    model = FluxModel.load(folder)
    assert type(model.vae) is AutoencoderKL and model.vae_scale_factor == 8
    assert type(model.text_encoder) is CLIPTextModel and type(model.text_encoder_2) is T5EncoderModel
    assert (model.tokenizer.model_max_length, model.max_text_tokens) == (77, 512)
    config = model.transformer.config
    assert config.guidance_embeds and config.in_channels == 64 and model.vae.config.latent_channels == 16
    assert model.scheduler.config.use_dynamic_shifting and model.scheduler.config.shift == 3.0
    assert sum(p.numel() for part in model.modules() for p in part.parameters()) < 400_000
    image = model.encode_images(torch.zeros(1, 3, 32, 48))
    assert (image.rows, image.columns, image.tokens.shape[2]) == (2, 3, 64)


def test_its_tokenizers_spell_any_text(folder: Path) -> None:
    ids = FluxModel.load(folder, max_text_tokens=40).tokenize([PROMPT, ""])
    model = FluxModel.load(folder)
    told_apart = "".join(model.tokenizer_2.convert_ids_to_tokens(ids.t5[0].tolist()))
    assert told_apart.startswith("▁A▁caf<unk>,▁3▁cats▁&▁the▁RED▁hat!</s><pad>")
    assert ids.t5.shape == (2, 40) and ids.t5[1, 0] == model.tokenizer_2.eos_token_id
    assert model.tokenizer.decode(ids.clip[0], skip_special_tokens=True).replace(" ", "").startswith("acafé,")


def test_stock_flux_pipeline_draws_what_we_draw(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
        part.requires_grad_(False)  # as ours are
    drawn = pipeline(
        [PROMPT],
        height=32,
        width=48,
        num_inference_steps=2,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=40,
        output_type="pt",
    ).images
    model = FluxModel.load(folder, max_text_tokens=40)
    ours = generate(model, [PROMPT], generator=5, height=32, width=48, steps=2, guidance=3.5)
    assert torch.equal(drawn, (ours / 2 + 0.5).clamp(0, 1))


def test_a_base_like_schnell_takes_no_guidance_and_shifts_nothing(tmp_path: Path) -> None:
    write_random_flux(tmp_path, dtype=torch.float32, guidance_embeds=False, double_blocks=1, single_blocks=1)
    model = FluxModel.load(tmp_path, max_text_tokens=8)
    assert not model.scheduler.config.use_dynamic_shifting and model.scheduler.config.shift == 1.0
    assert generate(model, ["a"], generator=0, height=16, width=32, steps=1).shape == (1, 3, 16, 32)
    with pytest.raises(GuidanceError, match="no guidance embedding"):
        generate(model, ["a"], generator=0, height=16, width=32, steps=1, guidance=3.5)


def test_a_folder_of_another_flux_pipeline_with_the_same_parts_loads(folder: Path, tmp_path: Path) -> None:
    """FLUX.1-Kontext-dev is published as a FluxKontextPipeline, whose parts are FLUX.1-dev's."""
    shutil.copytree(folder, tmp_path / "kontext")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "FluxKontextPipeline", "feature_extractor": [None, None]}
    (tmp_path / "kontext" / "model_index.json").write_text(json.dumps(index))
    for ours, published in zip(
        FluxModel.load(tmp_path / "kontext").modules(), FluxModel.load(folder).modules(), strict=True
    ):
        for one, other in zip(ours.parameters(), published.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_seed_decides_every_file(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    write_random_flux(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(torch.rand(1), expected)
    write_random_flux(tmp_path / "other", seed=1, dtype=torch.float32)
    weights = sorted(folder.rglob("*.safetensors"))
    assert len(weights) == 4
    for file in weights:
        name = file.relative_to(folder)
        assert file.read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert file.read_bytes() != (tmp_path / "other" / name).read_bytes()
