"""What diffusers' own tests ask of a pipeline: stock outputs, batches, generators, types, callbacks."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from recipes.cologen.errors import GuidanceError, PictureError, PromptError, ShapeError, SourceStreamError
from recipes.cologen.pipeline import CoLoGenPipeline

SIZE = {"height": 48, "width": 32}
STOCK = {
    "plain": {},
    "sigmas": {"sigmas": [1.0, 0.6, 0.2], "num_inference_steps": 3},
    "several": {"num_images_per_prompt": 2},
    "true cfg": {"negative_prompt": "blue square", "true_cfg_scale": 3.0},
    "a second prompt": {"prompt_2": "small blue square"},
}


@pytest.fixture(params=["flux1", "klein"])
def pipe(request, made):
    """Of either family."""
    return made(request.param)


@pytest.mark.parametrize("changes", STOCK.values(), ids=STOCK)
@pytest.mark.parametrize("distilled", [False, True])
def test_without_a_source_it_is_stock_flux(build, tools, changes, distilled) -> None:
    pipe = build(guidance_embeds=distilled)
    stock = FluxPipeline(**pipe.components)
    stock.set_progress_bar_config(disable=True)
    length = {"max_sequence_length": 12}
    assert (
        tools.difference(tools.draw(pipe, **SIZE, **changes), tools.draw(stock, **SIZE, **changes, **length))
        == 0
    )


@pytest.mark.parametrize("timestep", ["same", "zero"])
def test_a_picture_does_not_depend_on_its_batch_mates(pipe, tools, timestep) -> None:
    prompts, pictures = (
        ["a red circle", "blue square", "a small object"],
        [tools.picture(n) for n in range(3)],
    )

    def seeded(*numbers: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(number) for number in numbers]

    together = tools.draw(pipe, prompts, pictures, generator=seeded(0, 1, 2), source_timestep=timestep).images
    for n in range(3):
        alone = tools.draw(
            pipe, prompts[n], pictures[n], generator=seeded(n), source_timestep=timestep
        ).images
        assert tools.difference(together[n], alone[0]) < 1e-5
    assert tools.difference(together[0], together[1]) > 1e-3


def test_a_list_of_generators_has_one_for_each_picture(pipe, tools, photo) -> None:
    with pytest.raises(ValueError, match="length 1, but requested an effective batch size of 2"):
        tools.draw(pipe, "a red circle", photo, num_images_per_prompt=2, generator=[torch.Generator()])


def test_pictures_of_one_prompt_come_one_after_the_other(pipe, tools, photo) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(n) for n in range(4)]

    prompts, pictures = ["a red circle", "blue square"], [photo, tools.picture(1)]
    for strength in (1.0, 0.5):
        asked = {"num_images_per_prompt": 2, "strength": strength}
        both = tools.draw(pipe, prompts, pictures, generator=generators(), **asked)
        second = tools.draw(pipe, prompts[1], pictures[1], generator=generators()[2:], **asked)
        assert len(both.images) == 4 and tools.difference(both.images[2:], second.images) < 1e-5


def test_one_prompt_serves_a_list_of_pictures(pipe, tools) -> None:
    pictures = [tools.picture(0), tools.picture(1)]
    latents = tools.draw(pipe, "a red circle", pictures, output_type="latent").images
    assert latents.shape == (2, 6, pipe.transformer.config.in_channels) and not torch.equal(
        latents[0], latents[1]
    )


@torch.no_grad()
def test_output_types_show_the_same_picture(pipe, tools, photo) -> None:
    kinds = {
        kind: tools.draw(pipe, "a", photo, output_type=kind).images for kind in ("pil", "np", "pt", "latent")
    }
    assert isinstance(kinds["pil"][0], Image.Image) and kinds["pil"][0].size == (32, 48)
    assert kinds["np"].shape == (1, 48, 32, 3) and kinds["pt"].shape == (1, 3, 48, 32)
    assert np.array_equal(np.rint(kinds["np"][0] * 255).astype(np.uint8), np.asarray(kinds["pil"][0]))
    assert np.array_equal(kinds["pt"].permute(0, 2, 3, 1).numpy(), kinds["np"])
    latents = pipe.family.decode(kinds["latent"], (48, 32), "np")
    assert np.array_equal(latents, kinds["np"])


def test_a_tuple_is_given_on_request(pipe, tools, photo) -> None:
    whole = tools.draw(pipe, "a", photo)
    assert whole.routing is None
    (images,) = tools.draw(pipe, "a", photo, return_dict=False)
    assert np.array_equal(images, whole.images)
    assert len(tools.draw(pipe, "a", photo, return_dict=False, output_routing=True)) == 2


@torch.no_grad()
def test_latents_and_embeddings_may_be_given(pipe, tools, photo) -> None:
    whole = tools.draw(pipe, "a red circle", photo, num_images_per_prompt=2)
    generator, channels = torch.Generator().manual_seed(0), pipe.transformer.config.in_channels // 4
    noise, _ = pipe.prepare_latents(2, channels, 48, 32, torch.float32, torch.device("cpu"), generator)
    if isinstance(pipe, CoLoGenPipeline):
        embeds, pooled, _ = pipe.encode_prompt("a red circle", max_sequence_length=12)
        text = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "latents": noise}
    else:  # its latents are given as they are drawn, before they are packed
        unpacked = noise.transpose(1, 2).reshape(2, -1, 3, 2)
        embeds, _ = pipe.encode_prompt("a red circle", max_sequence_length=128)
        text = {"prompt_embeds": embeds, "latents": unpacked}
    assert tools.difference(whole, tools.draw(pipe, None, photo, num_images_per_prompt=2, **text)) == 0


@pytest.mark.parametrize("timestep", ["same", "zero"])
def test_it_runs_in_bfloat16(pipe, tools, photo, timestep) -> None:
    exact = tools.draw(pipe, "a", photo, source_timestep=timestep).images
    coarse = tools.draw(pipe.to(torch.bfloat16), "a", photo, source_timestep=timestep).images
    assert np.isfinite(coarse).all() and 0 < tools.difference(exact, coarse) < 0.1


def test_callbacks_see_every_step_and_may_change_it(pipe, tools, photo) -> None:
    seen = []

    def zero_at_the_end(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    asked = {"callback_on_step_end": zero_at_the_end, "output_type": "latent"}
    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    assert not tools.draw(pipe, "a", photo, **asked, **inputs).images.any()
    assert [step for step, _, _ in seen] == [0, 1] and seen[0][2] == ["latents", "prompt_embeds"]
    assert pipe.num_timesteps == 2 and pipe.current_timestep is None
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        tools.draw(pipe, callback_on_step_end=zero_at_the_end, callback_on_step_end_tensor_inputs=["vae"])


def test_an_interrupted_call_leaves_later_steps_out(pipe, tools, photo) -> None:
    states = []

    def stop(pipe, step, timestep, tensors):
        states.append(tensors["latents"].clone())
        pipe._interrupt = step == 1
        return tensors

    asked = {"num_inference_steps": 4, "output_type": "latent", "callback_on_step_end": stop}
    assert torch.equal(tools.draw(pipe, "a", photo, **asked).images, states[1]) and len(states) == 2
    assert len(tools.draw(pipe, "a", photo, num_inference_steps=4).images) == 1  # the next call is whole


@torch.no_grad()
def test_strength_starts_from_the_picture(pipe, tools, photo) -> None:
    def distance(strength: float) -> float:
        start = pipe.family.encode(torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1, torch.zeros(1))
        asked = {"num_inference_steps": 10, "output_type": "latent", "strength": strength}
        return float((tools.draw(pipe, "a", photo, **asked).images - start).square().mean())

    assert distance(0.1) < distance(0.5) < distance(1.0)
    assert pipe.num_timesteps == 10
    distance(0.3)
    assert pipe.num_timesteps == 3


def test_the_negative_prompt_guides(pipe, tools, photo) -> None:
    plain = tools.draw(pipe, "a red circle", photo)
    guided = tools.draw(pipe, "a red circle", photo, negative_prompt="blue square", true_cfg_scale=4.0)
    assert tools.difference(plain, guided) > 1e-4


def test_the_progress_bar_can_be_configured(pipe, tools, photo, capsys) -> None:
    pipe.set_progress_bar_config(desc="generation", disable=False)
    tools.draw(pipe, "a", photo)
    assert "generation: 100%" in capsys.readouterr().err


REFUSALS = {
    "nothing": ({"prompt": None}, ValueError, "Provide either `prompt` or `prompt_embeds`"),
    "a number": ({"prompt": [3]}, PromptError, r"expected a prompt, .*got \[3\]"),
    "no height": (
        {"height": 50},
        ShapeError,
        "height must be a multiple of 16 for this base, got 50; try 48",
    ),
    "a type": ({"output_type": "jpg"}, PictureError, "output_type is one of pil, np, pt, latent; got 'jpg'"),
    "strength": ({"strength": 0.0}, PictureError, "strength lies above 0"),
    "no picture": ({"strength": 0.5}, PictureError, "give image, and no latents"),
    "guidance": ({"guidance_scale": 3.5}, GuidanceError, "no guidance embedding"),
    "cfg": ({"true_cfg_scale": 3.0}, GuidanceError, "needs a negative_prompt"),
    "no cfg": ({"negative_prompt": "a"}, GuidanceError, "would do nothing with true_cfg_scale=1.0"),
    "attention": (
        {"joint_attention_kwargs": {"mask": 1}},
        SourceStreamError,
        r"\['mask'\] would be passed over",
    ),
    "length": ({"prompt": "red " * 130}, PromptError, "131 T5 tokens|at most 128 are read"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_done_is_refused(pipe, changes, kind, message) -> None:
    with pytest.raises(kind, match=message):
        pipe(**({"prompt": "a red circle"} | changes))
