"""Whole steps of a FLUX with FLUX.1's proportions: plain, with PEFT's LoRA on K and V, and with pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import prw
from benchmarks.measuring import Case
from benchmarks.points import SCALE

RHO, ALPHA = 0.8, 0.5


@dataclass(frozen=True)
class Geometry:
    """A FLUX.1 with fewer blocks: one double to two single ones, heads of 128, a third as many text tokens.

    Attributes:
        heads: Heads of `head` features; FLUX.1 has 24 of 128, a width of 3072.
        head: Features of a head.
        double: Blocks with two streams; FLUX.1 has 19.
        single: Blocks with one stream; FLUX.1 has 38.
        side: Latent patches along an edge: 32 are 512 pixels.
        text: Text tokens; FLUX.1 has 512.
        rank: LoRA rank.
    """

    heads: int = 8
    head: int = 128
    double: int = 1
    single: int = 2
    side: int = 32
    text: int = 512
    rank: int = 16

    @property
    def width(self) -> int:
        """Width of the hidden states, d."""
        return self.heads * self.head

    def said(self) -> dict[str, int | str]:
        """Write it down."""
        return {"class": "diffusers.FluxTransformer2DModel", "width": self.width, **asdict(self)}


def base_weights(geometry: Geometry) -> dict[str, Tensor]:
    """Draw the base's weights once; every case shares them."""
    torch.manual_seed(0)
    return flux(geometry, "cpu").state_dict()


def flux(geometry: Geometry, device: str) -> nn.Module:
    # FLUX.1's rotary axes are 16, 56 and 56 of a head's 128 features.
    axes = geometry.head // 8, geometry.head * 7 // 16, geometry.head * 7 // 16
    with torch.device(device):
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=geometry.double,
            num_single_layers=geometry.single,
            attention_head_dim=geometry.head,
            num_attention_heads=geometry.heads,
            joint_attention_dim=geometry.width * 4 // 3,
            pooled_projection_dim=geometry.width // 4,
            guidance_embeds=True,
            axes_dims_rope=axes,
        )


def plain(geometry: Geometry, weights: dict[str, Tensor]) -> nn.Module:
    """The frozen base, on shared weights."""
    model = flux(geometry, "meta")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False)


def with_pool(geometry: Geometry, weights: dict[str, Tensor], experts: int) -> tuple[nn.Module, prw.Weave]:
    """A pool on the picture's K and V of every block; the newest expert trains."""
    model = plain(geometry, weights)
    names = [f"expert_{index}" for index in range(experts)]
    weave = prw.inject(model, "kv", names, rank=geometry.rank, alpha=SCALE * geometry.rank)
    awaken(model, ".prw_B")
    return model, weave


def with_lora(geometry: Geometry, weights: dict[str, Tensor]) -> nn.Module:
    """PEFT's LoRA on the very modules that a pool takes."""
    _, weave = with_pool(geometry, weights, 1)
    targets = [module for site in weave.sites for module in site.modules]
    config = LoraConfig(r=geometry.rank, lora_alpha=int(SCALE * geometry.rank), target_modules=targets)
    model = get_peft_model(plain(geometry, weights), config)
    awaken(model, ".lora_B")
    return model


@torch.no_grad()
def awaken(model: nn.Module, part: str) -> None:
    """Give every B values, as after training: zeros are no fair input."""
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.normal_(std=0.02)


def inputs(geometry: Geometry) -> dict[str, Tensor]:
    """Draw one batch: latents of one picture, its text, a timestep."""
    torch.manual_seed(1)
    tokens = geometry.side**2
    rows, columns = torch.meshgrid(torch.arange(geometry.side), torch.arange(geometry.side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(tokens, 3)
    return {
        # Gradients go down to the input in every case, also in the plain one, which trains nothing.
        "hidden_states": torch.randn(1, tokens, 64).requires_grad_(),
        "encoder_hidden_states": torch.randn(1, geometry.text, geometry.width * 4 // 3),
        "pooled_projections": torch.randn(1, geometry.width // 4),
        "timestep": torch.full((1,), 0.5),
        "guidance": torch.full((1,), 3.5),
        "img_ids": places.float(),
        "txt_ids": torch.zeros(geometry.text, 3),
    }


def denoising_step(model: nn.Module, batch: dict[str, Tensor]) -> Case:
    """One evaluation of the model without gradients."""
    model.eval()

    @torch.no_grad()
    def run() -> None:
        model(**batch, return_dict=False)

    return Case(run)


def training_step(model: nn.Module, weave: prw.Weave | None, batch: dict[str, Tensor]) -> Case:
    """Forward, backward and AdamW; a pool records its decisions and adds the veteran loss."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    target = torch.zeros_like(batch["hidden_states"])

    def loss_of(forward: Callable[[], Tensor]) -> Tensor:
        if weave is None:
            return nn.functional.mse_loss(forward(), target)
        with weave.record() as routing:
            task = nn.functional.mse_loss(forward(), target)
        return task + prw.veteran_loss(routing, rho=RHO, alpha=ALPHA)

    def run() -> None:
        loss_of(lambda: model(**batch, return_dict=False)[0]).backward()
        if optimizer is not None:
            optimizer.step()

    def clear() -> None:
        for parameter in (*trained, batch["hidden_states"]):
            parameter.grad = None

    return Case(run, clear)
