"""A VAE stand-in without weights: its latent is the picture with 2x2 blocks of pixels moved into channels.

It is exactly invertible, so a tiny FLUX pipeline needs no learnt autoencoder. The module imports diffusers
only, because a copy of it is shipped inside the pipeline's `vae/` folder, from where stock `FluxPipeline`
loads it (`save_tiny_flux`).
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional


class PixelUnshuffleVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Turns pixels into latents and back by `pixel_unshuffle(2)`, with the interface of `AutoencoderKL`.

    Two `block_out_channels` tell FluxPipeline that one latent cell covers 2x2 pixels.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_out_channels: tuple[int, int] = (12, 12),
        latent_channels: int = 12,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        """Keep the settings; there is nothing to learn."""
        super().__init__()
        # A model without any tensor has neither dtype nor device, and its weights file could not be written.
        self.register_buffer("anchor", torch.zeros(1))

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[IdentityDistribution]:
        """Turn pixels `[batch, 3, height, width]` into latents `[batch, 12, height/2, width/2]`."""
        distribution = IdentityDistribution(functional.pixel_unshuffle(x, 2))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Give latents `[batch, 12, height, width]` back as pixels `[batch, 3, 2*height, 2*width]`."""
        pixels = functional.pixel_shuffle(z, 2)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def forward(self, sample: Tensor) -> Tensor:
        """Encode and decode: the picture itself."""
        return functional.pixel_shuffle(functional.pixel_unshuffle(sample, 2), 2)
