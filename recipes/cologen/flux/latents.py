"""Between latent grids and FLUX tokens: packing, its inverse, and position ids. Pure functions, no models."""

import torch
from torch import Tensor

from recipes.cologen.errors import ShapeError

PATCH = 2
"""Side of the latent patch that makes one token."""


def pack_latents(latents: Tensor) -> Tensor:
    """Make one token of each 2x2 patch of latents, row by row, as FluxPipeline does.

    Args:
        latents: `[batch, channels, height, width]`, height and width even.

    Returns:
        `[batch, (height/2) * (width/2), 4 * channels]`; within a token the order is channel, row, column.

    Raises:
        ShapeError: if height or width is odd.
    """
    if latents.ndim != 4 or latents.shape[2] % PATCH or latents.shape[3] % PATCH:
        raise ShapeError(
            f"pack_latents expects latents [batch, channels, height, width] with even height and width, got "
            f"{list(latents.shape)}. A FLUX token covers 2x2 latent cells: choose picture sides that are "
            "multiples of 2 * vae_scale_factor."
        )
    batch, channels, height, width = latents.shape
    # [batch, channels, height, width] -> [batch, channels, rows, 2, columns, 2]
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    # -> [batch, rows, columns, channels, 2, 2] -> [batch, rows * columns, 4 * channels]
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack_latents`.

    Args:
        tokens: `[batch, (height/2) * (width/2), 4 * channels]`.
        height: rows of the latent grid, even.
        width: columns of the latent grid, even.

    Returns:
        Latents `[batch, channels, height, width]`.

    Raises:
        ShapeError: if the tokens do not fill that grid.
    """
    rows, columns = height // PATCH, width // PATCH
    expected = rows * columns
    if (
        height % PATCH
        or width % PATCH
        or tokens.ndim != 3
        or tokens.shape[1] != expected
        or tokens.shape[2] % 4
    ):
        raise ShapeError(
            f"unpack_latents of a {height}x{width} latent grid expects tokens [batch, {expected}, 4 * "
            f"channels] and even sides, got {list(tokens.shape)}. Are height and width swapped, or given in "
            "pixels?"
        )
    # [batch, rows * columns, 4 * channels] -> [batch, rows, columns, channels, 2, 2]
    patches = tokens.reshape(tokens.shape[0], rows, columns, -1, PATCH, PATCH)
    # -> [batch, channels, rows, 2, columns, 2] -> [batch, channels, height, width]
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, height, width)


def image_position_ids(rows: int, columns: int, index: int = 0, device: torch.device | None = None) -> Tensor:
    """Number the tokens of one image for the rotary embedding: (image index, row, column).

    Every image starts at row 0 and column 0 on its own grid and differs in the index alone: 0 for the noise,
    1 for the source, as FLUX.1 Kontext does.

    Args:
        rows: token rows (latent height / 2).
        columns: token columns (latent width / 2).
        index: number of the image, put on axis 0.
        device: where the ids are wanted.

    Returns:
        Float ids `[rows * columns, 3]`.
    """
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.reshape(-1, 3)  # [rows, columns, 3] -> [rows * columns, 3]


def text_position_ids(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Give text its position ids `[num_tokens, 3]`: all zero, for FLUX text has no place on the grid."""
    return torch.zeros(num_tokens, 3, device=device)
