"""Drawing pictures: FluxPipeline's own without a source, and what a source adds."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import ValidationError
from torch import Tensor

from recipes.cologen.errors import ShapeError, SourceStreamError
from recipes.cologen.flux import FluxModel, ImageTokens, SourceTimestep, generate
from recipes.cologen.flux.sampling import Sampling, _schedule, denoise, starting_noise

Build = Callable[..., FluxModel]
PROMPTS = ["a red circle", "blue square on the left"]
SHIFTED = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("schedule", [{}, SHIFTED], ids=["schnell", "dev"])
def test_without_a_source_the_pictures_are_flux_pipelines(
    build: Build, guidance: float | None, schedule: dict[str, float]
) -> None:
    model = build(guidance_embeds=guidance is not None)
    model.scheduler = FlowMatchEulerDiscreteScheduler(**schedule)
    ours = generate(model, PROMPTS, generator=7, height=16, width=12, steps=3, guidance=guidance)
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        height=16,
        width=12,
        num_inference_steps=3,
        guidance_scale=guidance or 0.0,
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=model.max_text_tokens,
        output_type="pt",
    ).images
    assert torch.equal(ours / 2 + 0.5, theirs)


def test_a_source_is_read_and_may_have_another_size(build: Build) -> None:
    model = build()
    settings = {"generator": 0, "height": 16, "width": 12, "steps": 2}
    alone = generate(model, PROMPTS, **settings)
    beside = generate(model, PROMPTS, torch.rand(2, 3, 8, 20) * 2 - 1, **settings)
    assert beside.shape == (2, 3, 16, 12) and not torch.allclose(alone, beside, atol=1e-4)


def test_zero_runs_the_source_once_and_draws_what_running_it_at_every_step_draws(
    either: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = either()
    sampling = Sampling(height=16, width=16, steps=3, source_timestep="zero")
    with torch.no_grad():
        text, source = model.encode_prompts(PROMPTS), model.encode_images(torch.rand(2, 3, 16, 16))
        noise = starting_noise(model, 2, sampling, 0)
        passes: list[ImageTokens] = []
        once = type(model).source_kv
        monkeypatch.setattr(
            type(model),
            "source_kv",
            lambda self, source, *rest: passes.append(source) or once(self, source, *rest),
        )
        cached = denoise(model, noise, text, source, sampling)
        assert len(passes) == 1
        velocity = type(model).velocity
        monkeypatch.setattr(
            type(model),
            "velocity",
            lambda self, x, t, text, _, *rest: velocity(self, x, t, text, source, *rest),
        )
        assert torch.equal(cached.tokens, denoise(model, noise, text, source, sampling).tokens)


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_with_a_generator_each_a_picture_does_not_depend_on_its_batch_mates(
    either: Build, source_timestep: SourceTimestep
) -> None:
    model = either()
    source = torch.rand(2, 3, 16, 16) * 2 - 1
    settings = {"height": 16, "width": 16, "steps": 2, "source_timestep": source_timestep}
    both = generate(
        model, PROMPTS, source, generator=[torch.Generator().manual_seed(i) for i in (3, 4)], **settings
    )
    second = generate(
        model, PROMPTS[1:], source[1:], generator=[torch.Generator().manual_seed(4)], **settings
    )
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)


def test_models_and_scheduler_are_left_as_they_were(build: Build) -> None:
    model = build()
    model.text_encoder.eval()
    before = [module.training for part in model.modules() for module in part.modules()]
    timesteps = model.scheduler.timesteps.clone()
    assert not generate(model, PROMPTS, generator=0, height=8, width=8, steps=1).requires_grad
    assert before == [module.training for part in model.modules() for module in part.modules()]
    assert torch.equal(model.scheduler.timesteps, timesteps) and model.scheduler.step_index is None


def test_sides_that_do_not_fit_and_unknown_settings_are_refused(build: Build) -> None:
    model = build()
    with pytest.raises(ShapeError, match="multiples of 4 for this base, got 16x18"):
        generate(model, PROMPTS, generator=0, height=16, width=18)
    with pytest.raises(ValidationError, match="stepz"):
        generate(model, PROMPTS, generator=0, height=16, width=16, stepz=3)


SETTINGS = {"generator": 3, "height": 16, "width": 16, "steps": 2}


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_true_guidance_goes_away_from_the_negative_prompt_at_every_step(
    either: Build, source_timestep: SourceTimestep
) -> None:
    model, sources = either(), torch.rand(2, 3, 16, 16) * 2 - 1
    draw = partial(generate, model, PROMPTS, sources, source_timestep=source_timestep, **SETTINGS)
    assert torch.equal(draw(), draw(true_cfg_scale=1.0, negative_prompt="unread"))
    guided = draw(true_cfg_scale=3.0, negative_prompt="green")
    by_hand = draw_by_hand(model, sources, source_timestep, 3.0, "green")
    assert torch.equal(guided, by_hand) and not torch.allclose(guided, draw(), atol=1e-4)
    assert not torch.allclose(guided, draw(true_cfg_scale=3.0), atol=1e-6)  # away from the empty prompt


@torch.no_grad()
def draw_by_hand(
    model: FluxModel, sources: Tensor, source_timestep: SourceTimestep, scale: float, negative: str
) -> Tensor:
    """Euler steps along v_negative + scale (v - v_negative), with nothing kept from step to step."""
    sampling = Sampling(height=16, width=16, steps=2, source_timestep=source_timestep)
    noise, source = starting_noise(model, 2, sampling, 3), model.encode_images(sources)
    texts = [model.encode_prompts(PROMPTS), model.encode_prompts([negative] * 2)]
    scheduler, timesteps = _schedule(model, noise.tokens.shape[1], sampling)
    tokens = noise.tokens
    for timestep in timesteps:
        given, fraction = noise.with_tokens(tokens), timestep.expand(2) / 1000
        toward, away = (model.velocity(given, fraction, text, source, source_timestep) for text in texts)
        tokens = scheduler.step(away + scale * (toward - away), timestep, tokens, return_dict=False)[0]
    return model.decode(noise.with_tokens(tokens)).clamp(-1, 1)


def test_without_a_source_true_guidance_is_that_of_the_stock_pipelines(either: Build) -> None:
    model = either()
    ours = generate(model, PROMPTS, true_cfg_scale=4.0, **SETTINGS)
    if isinstance(model, FluxModel):
        pipeline, named = model.pipeline(), {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}
    else:
        model.is_distilled = False
        pipeline, named = model.pipeline(), {"guidance_scale": 4.0}
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=PROMPTS,
        height=16,
        width=16,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=model.max_text_tokens,
        output_type="pt",
        **named,
    ).images
    assert torch.equal(ours / 2 + 0.5, theirs)


def test_keys_and_values_of_the_prompts_do_not_serve_a_negative_prompt(build: Build) -> None:
    model = build()
    sampling = Sampling(height=16, width=16, steps=1, source_timestep="zero", true_cfg_scale=2.0)
    with torch.no_grad():
        text, away = model.encode_prompts(PROMPTS), model.encode_prompts(["", ""])
        kept = model.source_kv(model.encode_images(torch.zeros(2, 3, 16, 16)), text)
        noise = starting_noise(model, 2, sampling, 0)
        denoise(model, noise, text, kept, sampling)
        with pytest.raises(SourceStreamError, match="give the source itself"):
            denoise(model, noise, text, kept, sampling, away)
