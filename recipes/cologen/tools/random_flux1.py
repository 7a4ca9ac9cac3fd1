"""Writes a FLUX.1 base of random weights with every class, file and rule of FLUX.1-dev, but small.

It generates noise, and serves to try out everything else.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from pydantic import BaseModel, ConfigDict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from recipes.cologen.flux.tiny import clip_config, t5_config
from recipes.cologen.flux.vocabulary import WORD_END


def letter_tokenizers(clip_length: int, t5_length: int) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Make a CLIP tokenizer over single bytes and a T5 tokenizer over single printable ASCII characters.

    Other characters are unknown to T5, as they are to the real one where its vocabulary ends.

    Args:
        clip_length: tokens of a CLIP prompt, start and end mark included.
        t5_length: tokens of a T5 prompt, end mark included.
    """
    letters = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + WORD_END for letter in letters)]
    clip = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=clip_length
    )
    printable = string.ascii_letters + string.digits + string.punctuation
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(piece, -1.0) for piece in ("▁", *printable)]
    return clip, T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=t5_length)


CLIP_LENGTH, T5_LENGTH = 77, 512
"""Tokens of a prompt, as FLUX.1-dev has them."""


class RandomShape(BaseModel):
    """Sizes of such a base; what is not here is as in FLUX.1-dev."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    double_blocks: int = 2
    single_blocks: int = 2
    heads: int = 2
    axes: tuple[int, int, int] = (4, 6, 6)
    """Rotary dimensions of image index, row and column; a head is as wide as their sum."""
    text_width: int = 32
    """Width of both text encoders."""
    vae_width: int = 8
    """Channels of the VAE's convolutions; its latent has 16, and a cell covers 8 x 8 pixels."""
    guidance_embeds: bool = True
    """Whether the transformer takes a guidance scale, as FLUX.1-dev and Kontext do and schnell does not."""


def write_random_flux(
    folder: str | Path,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    **shape: int | bool | tuple[int, int, int],
) -> None:
    """Write such a base; stock `FluxPipeline.from_pretrained` loads it.

    Args:
        folder: made if missing; files of the same names are replaced.
        seed: of the weights, which follow from it; the global random state is left as it was.
        dtype: of the saved weights; FLUX.1-dev is published in bfloat16.
        **shape: sizes that differ from `RandomShape`.
    """
    sizes = RandomShape.model_validate(shape)
    clip, t5 = letter_tokenizers(CLIP_LENGTH, T5_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": _transformer(sizes),
            "vae": _vae(sizes),
            "text_encoder": CLIPTextModel(clip_config(sizes.text_width, clip)),
            "text_encoder_2": T5EncoderModel(t5_config(sizes.text_width, t5)),
        }
    pipeline = FluxPipeline(
        # torch's own `to`: diffusers' warns of modules that this base does not have.
        **{name: torch.nn.Module.to(part, dtype).eval() for name, part in parts.items()},
        tokenizer=clip,
        tokenizer_2=t5,
        scheduler=_scheduler(sizes),
    )
    pipeline.save_pretrained(folder)


def _transformer(sizes: RandomShape) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sum(sizes.axes),
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.text_width,
        guidance_embeds=sizes.guidance_embeds,
        axes_dims_rope=sizes.axes,
    )


def _vae(sizes: RandomShape) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(sizes.vae_width,) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=sizes.vae_width // 4,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        force_upcast=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _scheduler(sizes: RandomShape) -> FlowMatchEulerDiscreteScheduler:
    """Of FLUX.1-dev, whose times are shifted by the picture's size; or of schnell, whose are not."""
    guided = sizes.guidance_embeds
    return FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided)
