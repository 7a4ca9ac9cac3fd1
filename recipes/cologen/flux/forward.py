"""One call of the FLUX transformer as FluxPipeline makes it, plus what processors must know of the source."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from recipes.cologen.errors import GuidanceError
from recipes.cologen.flux.latents import text_position_ids
from recipes.cologen.flux.source_stream import SourceTokens
from recipes.cologen.flux.tokens import TextTokens


def run_transformer(
    transformer: FluxTransformer2DModel,
    tokens: Tensor,
    ids: Tensor,
    timestep: Tensor,
    text: TextTokens,
    guidance: float | None,
    source: SourceTokens,
) -> Tensor:
    """Predict the velocity of image tokens.

    Args:
        transformer: the FLUX.1 transformer; with a source, it has the source stream's processors.
        tokens: noise, or noise and source, or the source alone: `[batch, tokens, channels]`.
        ids: their positions `[tokens, 3]`.
        timestep: `[batch]` in [0, 1].
        text: the prompts; there may be no text tokens at all.
        guidance: scale for a guidance-distilled base, None for others.
        source: which of the tokens are source tokens, and what happens to their keys and values.

    Returns:
        `[batch, tokens, channels]`, in the dtype of the transformer.

    Raises:
        GuidanceError: if the base needs a guidance scale and got none, or the reverse.
    """
    dtype = transformer.dtype
    velocity: Tensor = transformer(
        hidden_states=tokens.to(dtype),
        timestep=timestep,
        guidance=_guidance_vector(transformer, guidance, tokens),
        pooled_projections=text.pooled.to(dtype),
        encoder_hidden_states=text.embeds.to(dtype),
        txt_ids=text_position_ids(text.embeds.shape[1], tokens.device),
        img_ids=ids,
        joint_attention_kwargs=None if source == SourceTokens() else {"source": source},
        return_dict=False,
    )[0]
    return velocity


def _guidance_vector(
    transformer: FluxTransformer2DModel, guidance: float | None, tokens: Tensor
) -> Tensor | None:
    wanted = bool(transformer.config.guidance_embeds)
    if wanted and guidance is None:
        raise GuidanceError(
            "this base is guidance-distilled (guidance_embeds is true in its config) and needs a guidance "
            "scale: pass guidance=1.0 in training, about 3.5 when sampling."
        )
    if not wanted and guidance is not None:
        raise GuidanceError(
            "this base has no guidance embedding (guidance_embeds is false in its config), so "
            f"guidance={guidance} would do nothing: pass None."
        )
    return None if guidance is None else torch.full([tokens.shape[0]], guidance, device=tokens.device)
