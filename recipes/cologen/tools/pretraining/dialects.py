"""Offsets on the source's keys and values that tell a base which dialect is spoken: for pretraining only.

They stand where the experts of the stages will stand, and are thrown away when pretraining ends. What stays
is a base that takes orders from its source's keys and values, also when some of the tokens order something
else, as tokens that a router sends to another expert do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from recipes.cologen.flux.source_stream import flux_attentions

MOST_STRAY = 0.25
"""Up to this share of a picture's tokens speaks another dialect."""
STRENGTH = (0.6, 1.1)
"""What offsets are multiplied by, as a router's weight multiplies an expert."""


class Dialects(nn.Module):
    """One learnt offset for each dialect, attention block, and key or value; added to every source token.

    Attributes:
        offsets: `[blocks, 2, dialects, width]`.
    """

    def __init__(
        self, transformer: FluxTransformer2DModel, num_dialects: int, generator: torch.Generator
    ) -> None:
        """Attach to the keys and values of the transformer; nothing is added outside `spoken`."""
        super().__init__()
        attentions = flux_attentions(transformer).values()
        width = transformer.inner_dim
        shape = (len(attentions), 2, num_dialects, width)
        self.offsets = nn.Parameter(0.1 * torch.randn(shape, generator=generator))
        self._added: Tensor | None = None
        for block, attention in enumerate(attentions):
            for part, projection in enumerate((attention.to_k, attention.to_v)):
                projection.register_forward_hook(self._adder(block, part))

    def _adder(self, block: int, part: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return output if self._added is None else output + self._added[block, part]

        return add

    @contextmanager
    def spoken(
        self, dialects: Sequence[int | None], num_tokens: int, generator: torch.Generator | None = None
    ) -> Iterator[None]:
        """Add the dialects' offsets to what passes inside the `with` block: the source pass alone.

        Args:
            dialects: one of each picture, None for none.
            num_tokens: source tokens of a picture.
            generator: of the strength, and of the tokens that stray; None leaves both out.
        """
        ids = torch.tensor([-1 if dialect is None else dialect for dialect in dialects])
        blocks, _, num_dialects, _ = self.offsets.shape
        shape = (blocks, len(ids), num_tokens)
        weight = (ids >= 0).float()[:, None]
        told = ids.clamp(min=0)[None, :, None].expand(shape)
        if generator is not None:
            low, high = STRENGTH
            weight = weight * (low + (high - low) * torch.rand(len(ids), 1, generator=generator))
            most = MOST_STRAY * torch.rand(len(ids), 1, generator=generator)
            strays = torch.rand(shape, generator=generator) < most
            told = torch.where(strays, torch.randint(num_dialects, shape, generator=generator), told)
        rows = torch.arange(blocks)[:, None, None]
        # [blocks, batch, tokens, 2, width]: K and V of a token speak one dialect, as a site decides for both
        chosen = self.offsets.transpose(1, 2)[rows, told] * weight[None, :, :, None, None]
        self._added = chosen.permute(0, 3, 1, 2, 4)
        try:
            yield
        finally:
            self._added = None
