"""All families of the matrix, in the order of the page."""

from __future__ import annotations

from tests.prw.matrix import decoders, encoders, pipelines, torch_models

FAMILIES = [*decoders.FAMILIES, *encoders.FAMILIES, *pipelines.FAMILIES, *torch_models.FAMILIES]
