"""Packing and position ids, against FluxPipeline's own."""

import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.errors import ShapeError
from recipes.cologen.flux import image_position_ids, pack_latents, text_position_ids, unpack_latents

sizes = st.integers(1, 5)


@given(batch=sizes, channels=sizes, rows=sizes, columns=sizes)
def test_packing_is_flux_pipelines_own_and_unpacking_undoes_it(
    batch: int, channels: int, rows: int, columns: int
) -> None:
    height, width = 2 * rows, 2 * columns
    latents = torch.randn(batch, channels, height, width)
    tokens = pack_latents(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, batch, channels, height, width))
    assert torch.equal(unpack_latents(tokens, height, width), latents)
    # FluxPipeline counts pixels; with a VAE factor of 1 these are latent cells.
    assert torch.equal(
        unpack_latents(tokens, height, width), FluxPipeline._unpack_latents(tokens, height, width, 1)
    )


@given(rows=sizes, columns=sizes)
def test_noise_ids_are_flux_pipelines_own(rows: int, columns: int) -> None:
    expected = FluxPipeline._prepare_latent_image_ids(1, rows, columns, torch.device("cpu"), torch.float32)
    assert torch.equal(image_position_ids(rows, columns), expected)


@given(rows=sizes, columns=sizes, index=st.integers(0, 3))
def test_ids_name_image_row_and_column_of_each_token(rows: int, columns: int, index: int) -> None:
    ids = image_position_ids(rows, columns, index)
    wanted = [[index, row, column] for row in range(rows) for column in range(columns)]
    assert ids.tolist() == wanted


def test_text_has_no_place_on_the_grid() -> None:
    assert torch.equal(text_position_ids(5), torch.zeros(5, 3))


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (1, 3, 4, 5), (3, 4, 4)])
def test_latents_that_make_no_whole_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="even height and width"):
        pack_latents(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 6), (3, 8)])
def test_tokens_that_do_not_fill_the_grid_are_refused(height: int, width: int) -> None:
    with pytest.raises(ShapeError, match="swapped"):
        unpack_latents(torch.zeros(1, 6, 12), height, width)
