"""The weightless VAE: exactly invertible, and AutoencoderKL to those who ask."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE


@given(batch=st.integers(1, 3), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_encoding_is_exactly_invertible_and_halves_the_sides(batch: int, rows: int, columns: int) -> None:
    vae = PixelUnshuffleVAE()
    pixels = torch.randn(batch, 3, 2 * rows, 2 * columns)
    latents = vae.encode(pixels).latent_dist.mode()
    assert latents.shape == (batch, vae.config.latent_channels, rows, columns)
    assert torch.equal(vae.decode(latents).sample, pixels)
    assert torch.equal(
        vae.decode(vae.encode(pixels, return_dict=False)[0].sample(), return_dict=False)[0], pixels
    )
    assert torch.equal(vae(pixels), pixels)


def test_it_has_no_weights_but_a_dtype_and_flux_pipelines_scale_factor() -> None:
    vae = PixelUnshuffleVAE()
    assert not list(vae.parameters())
    assert vae.to(torch.float16).dtype is torch.float16
    assert 2 ** (len(vae.config.block_out_channels) - 1) == 2
