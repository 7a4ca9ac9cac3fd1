"""FLUX bases with a source stream: tokens, two-step attention, velocity and sampling, on stock classes."""

from recipes.cologen.flux.base import FluxBase, SourceTimestep
from recipes.cologen.flux.families import load_base_model
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.latents import image_position_ids, pack_latents, text_position_ids, unpack_latents
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.sampling import Sampling, generate
from recipes.cologen.flux.source_stream import (
    has_source_stream,
    install_source_stream,
    remove_source_stream,
)
from recipes.cologen.flux.tokens import ImageTokens, PromptIds, TextTokens
from recipes.cologen.flux.two_step import SourceKV

__all__ = [
    "Flux2Model",
    "FluxBase",
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
    "load_base_model",
    "pack_latents",
    "remove_source_stream",
    "text_position_ids",
    "unpack_latents",
]
