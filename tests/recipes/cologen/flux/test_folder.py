"""Reading a base from a diffusers folder, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from recipes.cologen.errors import BaseModelError
from recipes.cologen.flux import FluxModel, has_source_stream
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.tiny import save_tiny_flux

Build = Callable[..., FluxModel]


@pytest.fixture
def folder(build: Build, tmp_path: Path) -> Path:
    save_tiny_flux(build(), tmp_path / "base", torch.float32)
    return tmp_path / "base"


def edit_index(folder: Path, **changes: list[str | None]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def test_a_loaded_base_is_whole_frozen_and_in_eval_mode(build: Build, folder: Path) -> None:
    model, original = FluxModel.load(folder), build()
    assert type(model.vae) is PixelUnshuffleVAE and model.max_text_tokens == 8
    assert has_source_stream(model.transformer)
    for new, old in zip(model.modules(), original.modules(), strict=True):
        assert not new.training
        for p, q in zip(new.parameters(), old.parameters(), strict=True):
            assert torch.equal(p, q) and not p.requires_grad


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "vae" / "pixel_vae.py").write_text("raise SystemExit('ran')")
    FluxModel.load(folder)


def test_a_base_with_a_stock_vae_loads(build: Build, tmp_path: Path) -> None:
    model = build()
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model.vae = AutoencoderKL(
        block_out_channels=(4, 4),
        latent_channels=12,
        norm_num_groups=2,
        scaling_factor=0.5,
        shift_factor=0.1,
        **blocks,
    )
    model.pipeline().save_pretrained(tmp_path)
    again = FluxModel.load(tmp_path)
    pixels = torch.rand(1, 3, 8, 12) * 2 - 1
    image = again.encode_images(pixels)
    assert (image.rows, image.columns, image.tokens.shape[2]) == (2, 3, 48)
    assert again.decode(image).shape == pixels.shape


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no FLUX base at .*nowhere"):
        FluxModel.load(tmp_path / "nowhere")


def test_another_pipeline_is_refused(folder: Path) -> None:
    edit_index(folder, _class_name="StableDiffusionPipeline", text_encoder_2=[None, None])
    with pytest.raises(BaseModelError, match="StableDiffusionPipeline without text_encoder_2"):
        FluxModel.load(folder)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def point(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24\n")


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FAULTS = {
    "a pointer": (
        lambda base: point(base / WEIGHTS),
        r"safetensors is a pointer of git-lfs(.|\n)*git lfs pull",
    ),
    "a missing part": (lambda base: shutil.rmtree(base / "text_encoder_2"), "lacks text_encoder_2"),
    "missing weights": (lambda base: (base / WEIGHTS).unlink(), "cannot be loaded"),
    "cut weights": (lambda base: truncate(base / WEIGHTS), "cannot be loaded"),
    "a cut config": (lambda base: truncate(base / "transformer/config.json"), "cannot be loaded"),
    "a cut vae": (lambda base: truncate(base / "vae/config.json"), "cannot be loaded"),
    "a cut tokenizer": (lambda base: truncate(base / "tokenizer_2/tokenizer.json"), "cannot be loaded"),
    "a cut index": (lambda base: truncate(base / "model_index.json"), "cannot be read as JSON"),
    "a list as index": (lambda base: (base / "model_index.json").write_text("[]"), "should hold an object"),
    "an odd index": (lambda base: edit_index(base, vae=["x"]), "without vae"),
}


@pytest.mark.parametrize(("harm", "message"), FAULTS.values(), ids=FAULTS)
def test_a_broken_folder_is_refused(folder: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(folder)
    with pytest.raises(BaseModelError, match=message):
        FluxModel.load(folder)


def test_a_foreign_vae_class_is_refused(folder: Path) -> None:
    edit_index(folder, vae=["evil", "SomeVAE"])
    with pytest.raises(BaseModelError, match=r"VAE class evil\.SomeVAE"):
        FluxModel.load(folder)
