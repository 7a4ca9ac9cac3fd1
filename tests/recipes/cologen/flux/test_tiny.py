"""Tiny bases: built by seed, saved, and drawn from by stock FluxPipeline."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from pydantic import ValidationError

from recipes.cologen.flux import FluxModel, generate, has_source_stream
from recipes.cologen.flux.tiny import TinyShape, build_tiny_flux, save_tiny_flux

Build = Callable[..., FluxModel]


def test_the_seed_decides_the_weights_and_the_random_state_is_left_alone(build: Build) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = build(), build(), build(seed=1)
    assert torch.equal(torch.rand(1), expected)
    for a, b, c in zip(first.modules(), again.modules(), other.modules(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert all(
            not torch.equal(x, y)
            for x, y in zip(a.parameters(), c.parameters(), strict=True)
            if x.std() > 0.01
        )


def test_it_is_ready_to_train(build: Build) -> None:
    model = build()
    assert has_source_stream(model.transformer)
    assert all(p.requires_grad for part in model.modules() for p in part.parameters())
    assert all(part.training for part in model.modules())


def test_stock_flux_pipeline_draws_from_the_saved_folder(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = build()
    save_tiny_flux(model, tmp_path / "base", torch.float32)
    pipeline = FluxPipeline.from_pretrained(tmp_path / "base", dtype=torch.float32, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ["a red circle"],
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=8,
    ).images[0]
    ours = generate(model, ["a red circle"], generator=5, height=16, width=16, steps=2)
    ours = ((ours[0] / 2 + 0.5) * 255).round().to(torch.uint8)
    assert drawn.size == (16, 16)
    assert torch.equal(
        torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).view(16, 16, 3), ours.permute(1, 2, 0)
    )


def test_saving_in_half_precision_leaves_the_model_alone(build: Build, tmp_path: Path) -> None:
    model = build()
    save_tiny_flux(model, tmp_path, torch.float16)
    assert model.transformer.dtype is torch.float32 and has_source_stream(model.transformer)
    again = FluxModel.load(tmp_path)
    assert again.transformer.dtype is torch.float32
    for old, new in zip(model.modules(), again.modules(), strict=True):
        for a, b in zip(old.parameters(), new.parameters(), strict=True):
            assert torch.equal(a.half().float(), b)


def test_the_default_shape_has_the_size_that_was_measured() -> None:
    model = build_tiny_flux(["red"])
    assert TinyShape().width == 128
    assert sum(p.numel() for p in model.transformer.parameters()) == 1_810_096


def test_an_unknown_size_is_refused(build: Build) -> None:
    with pytest.raises(ValidationError, match="depth"):
        build(depth=3)
