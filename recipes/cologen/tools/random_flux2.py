"""Builds and writes a FLUX.2 klein base with random weights, in the layout of the real one.

Every class, shape rule and file is there, with some ten thousand parameters a block. It draws noise; it is
there to try out everything else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from pydantic import BaseModel, ConfigDict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.source_stream import install_source_stream

READ_LAYERS = 3
"""Layers of the text encoder that the pipeline reads, side by side."""
END, START_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""Turns as Qwen3 writes them."""


class RandomFlux2Shape(BaseModel):
    """Sizes of such a base; what is not here is as in FLUX.2-klein-4B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    double_blocks: int = 1
    single_blocks: int = 2
    heads: int = 2
    axes: tuple[int, int, int, int] = (4, 4, 4, 4)
    """Rotary dimensions of picture, row, column and text place; a head is as wide as their sum."""
    text_width: int = 16
    """Width of the text encoder, of which the pipeline reads layer 27; it has 28 layers."""
    vae_width: int = 8
    """Channels of the VAE's convolutions; its latent has 32, and a cell covers 8 x 8 pixels."""
    max_text_tokens: int = 128
    """Bytes of a prompt and its chat template. The real one reads 512 tokens of about four letters."""
    guidance_embeds: bool = False
    """Whether the transformer takes a guidance scale: FLUX.2-dev does, klein does not."""


def build_random_flux2(*, seed: int = 0, **shape: int | bool | tuple[int, int, int, int]) -> Flux2Model:
    """Build such a base, trainable, in eval mode, with the source stream installed.

    Args:
        seed: of the weights; the global random state is left as it was.
        **shape: sizes that differ from `RandomFlux2Shape`.
    """
    sizes = RandomFlux2Shape.model_validate(shape)
    tokenizer = _tokenizer(sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Flux2Model(
            transformer=_transformer(sizes),
            vae=_vae(sizes),
            text_encoder=Qwen3ForCausalLM(_text_config(sizes, tokenizer)),
            tokenizer=tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            max_text_tokens=sizes.max_text_tokens,
        )
    for module in model.modules():
        module.eval()
    install_source_stream(model.transformer)
    return model


def write_random_flux2(
    folder: str | Path,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    **shape: int | bool | tuple[int, int, int, int],
) -> None:
    """Write such a base; stock `Flux2KleinPipeline.from_pretrained` loads it.

    Args:
        folder: made if missing; files of the same names are replaced.
        seed: of the weights, which follow from it; the global random state is left as it was.
        dtype: of the saved weights; klein is published in bfloat16.
        **shape: sizes that differ from `RandomFlux2Shape`.
    """
    model = build_random_flux2(seed=seed, **shape)
    for module in model.modules():
        # torch's own `to`: diffusers' warns of modules that this base does not have.
        torch.nn.Module.to(module, dtype)
    model.pipeline().save_pretrained(folder)


def _transformer(sizes: RandomFlux2Shape) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sum(sizes.axes),
        num_attention_heads=sizes.heads,
        joint_attention_dim=READ_LAYERS * sizes.text_width,
        timestep_guidance_channels=32,
        axes_dims_rope=sizes.axes,
        guidance_embeds=sizes.guidance_embeds,
    )


def _vae(sizes: RandomFlux2Shape) -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(sizes.vae_width,) * 4,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=sizes.vae_width // 4,
        sample_size=1024,
    )
    # As measured on latents of pictures: neither 0 nor 1, so that forgetting them shows.
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _tokenizer(sizes: RandomFlux2Shape) -> Qwen2Tokenizer:
    """A tokenizer of Qwen3's class that spells byte by byte, without a learnt vocabulary."""
    pieces = [*sorted(ByteLevel.alphabet()), END, START_TURN, END_TURN]
    return Qwen2Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[],
        pad_token=END,
        eos_token=END_TURN,
        additional_special_tokens=[START_TURN, END_TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=sizes.max_text_tokens,
    )


def _text_config(sizes: RandomFlux2Shape, tokenizer: Qwen2Tokenizer) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=2 * sizes.text_width,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=sizes.text_width // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
