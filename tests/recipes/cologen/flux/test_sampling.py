"""Drawing pictures: FluxPipeline's own without a source, and what a source adds."""

from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import ValidationError

from recipes.cologen.errors import ShapeError
from recipes.cologen.flux import FluxModel, ImageTokens, SourceTimestep, generate
from recipes.cologen.flux.sampling import Sampling, denoise, starting_noise

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
