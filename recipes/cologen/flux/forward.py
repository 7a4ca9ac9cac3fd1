"""One call of the FLUX transformer as FluxPipeline makes it, plus what processors must know of the source."""

from __future__ import annotations

from diffusers import FluxTransformer2DModel
from torch import Tensor

from recipes.cologen.flux.latents import text_position_ids
from recipes.cologen.flux.tokens import TextTokens
from recipes.cologen.flux.two_step import SourceTokens
from recipes.cologen.flux.velocity import guidance_vector


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
        guidance=guidance_vector(transformer, guidance, tokens),
        pooled_projections=text.pooled.to(dtype),
        encoder_hidden_states=text.embeds.to(dtype),
        txt_ids=text_position_ids(text.embeds.shape[1], tokens.device),
        img_ids=ids,
        joint_attention_kwargs=None if source == SourceTokens() else {"source": source},
        return_dict=False,
    )[0]
    return velocity
