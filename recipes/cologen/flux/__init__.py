"""FLUX.1 with a source stream: tokens, two-step attention, velocity and sampling, on stock classes."""

from recipes.cologen.flux.latents import image_position_ids, pack_latents, text_position_ids, unpack_latents
from recipes.cologen.flux.model import FluxModel, SourceTimestep
from recipes.cologen.flux.sampling import Sampling, generate
from recipes.cologen.flux.source_stream import (
    SourceKV,
    has_source_stream,
    install_source_stream,
    remove_source_stream,
)
from recipes.cologen.flux.tokens import ImageTokens, PromptIds, TextTokens

__all__ = [
    "FluxModel",
    "ImageTokens",
    "PromptIds",
    "Sampling",
    "SourceKV",
    "SourceTimestep",
    "TextTokens",
    "generate",
    "has_source_stream",
    "image_position_ids",
    "install_source_stream",
    "pack_latents",
    "remove_source_stream",
    "text_position_ids",
    "unpack_latents",
]
