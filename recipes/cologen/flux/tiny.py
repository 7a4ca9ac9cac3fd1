"""Builds and saves tiny FLUX bases of the real classes, over a closed vocabulary. No pretraining here."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from pydantic import BaseModel, ConfigDict
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from recipes.cologen.flux import pixel_vae
from recipes.cologen.flux.folder import INDEX_FILE
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import install_source_stream
from recipes.cologen.flux.vocabulary import build_tokenizers


def clip_config(width: int, tokenizer: PreTrainedTokenizerBase) -> CLIPTextConfig:
    """Give the config of a CLIP of one layer that reads as many tokens as its tokenizer makes."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        # The pooled vector is read at the first end mark; its id must not be 2, which CLIP treats specially.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_config(width: int, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """Give the config of a T5 of two layers."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


__all__ = ["TinyShape", "build_tiny_flux", "build_tokenizers", "save_tiny_flux"]


class TinyShape(BaseModel):
    """Sizes of a tiny FLUX base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 128
    """Transformer width."""
    heads: int = 4
    """Attention heads; `width / heads` must be the sum of `axes`."""
    axes: tuple[int, int, int] = (8, 12, 12)
    """Rotary dimensions of image index, row and column."""
    double_blocks: int = 2
    single_blocks: int = 2
    text_width: int = 64
    """Width of both text encoders."""
    max_text_tokens: int = 20
    """Length of T5 prompts, end mark included."""
    guidance_embeds: bool = False
    """Whether the transformer takes a guidance scale, as FLUX.1-dev does."""


def build_tiny_flux(words: Sequence[str], *, seed: int = 0, **shape: int | tuple[int, int, int]) -> FluxModel:
    """Build a FLUX base with random weights, in train mode, with the source stream installed.

    Args:
        words: the closed vocabulary of its prompts.
        seed: of the weights; the global random state is left as it was.
        **shape: sizes that differ from `TinyShape`.

    Raises:
        VocabularyError: if a word cannot be one token.
    """
    sizes = TinyShape.model_validate(shape)
    tokenizer, tokenizer_2 = build_tokenizers(words, sizes.max_text_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FluxModel(
            transformer=_transformer(sizes),
            vae=PixelUnshuffleVAE(),
            text_encoder=CLIPTextModel(clip_config(sizes.text_width, tokenizer)),
            text_encoder_2=T5EncoderModel(t5_config(sizes.text_width, tokenizer_2)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            max_text_tokens=sizes.max_text_tokens,
        )
    for module in model.modules():
        module.train()
    install_source_stream(model.transformer)
    return model


def save_tiny_flux(model: FluxModel, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a tiny base in the diffusers layout, loadable by stock `FluxPipeline`; the model stays as it is.

    The module of the pixel VAE is copied into `vae/`: `FluxPipeline.from_pretrained(folder,
    trust_remote_code=True)` needs nothing else. `FluxModel.load` runs no code of the folder.

    Args:
        model: a base whose VAE is a `PixelUnshuffleVAE`.
        folder: made if missing; files of the same names are replaced.
        dtype: of the saved weights.
    """
    folder = Path(folder)
    pipeline = model.pipeline()
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        # torch's own `to`: those of diffusers and transformers warn about modules that this base does not
        # have.
        setattr(pipeline, name, torch.nn.Module.to(copy.deepcopy(getattr(model, name)), dtype))
    pipeline.save_pretrained(folder)
    shutil.copyfile(str(pixel_vae.__file__), folder / "vae" / "pixel_vae.py")
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    index["vae"] = ["pixel_vae", PixelUnshuffleVAE.__name__]
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _transformer(sizes: TinyShape) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=48,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.width // sizes.heads,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.text_width,
        guidance_embeds=sizes.guidance_embeds,
        axes_dims_rope=sizes.axes,
    )
