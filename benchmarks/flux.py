"""Whole steps of a FLUX with FLUX.1's proportions: plain, with PEFT's LoRA on K and V, and with pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import prw
from benchmarks.baselines import routed
from benchmarks.cases import LORA
from benchmarks.points import SCALE
from benchmarks.schema import Pass, Step
from benchmarks.timing import Case, Device, beside, paired

RHO, ALPHA = 0.8, 0.5
PLAIN_FLUX = "plain FLUX"


@dataclass(frozen=True)
class Geometry:
    """A FLUX.1 with fewer blocks: one double to two single ones, heads of 128 features.

    FLUX.1 has 24 heads (a width of 3072), 19 double and 38 single blocks, 512 text tokens; `side` is the
    number of latent patches along an edge: 32 are 512 pixels.
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

    def setup(self) -> dict[str, int | str]:
        """Write it down."""
        return {"class": "diffusers.FluxTransformer2DModel", "width": self.width, **asdict(self)}


def geometry_of(size: tuple[int, ...]) -> Geometry:
    """Read a group's size: heads, features of a head, patches along an edge, text tokens, rank."""
    return Geometry(**dict(zip(("heads", "head", "side", "text", "rank"), size, strict=True)))


class Model(NamedTuple):
    """A case: its model, a pool's handle, and how many experts it has."""

    model: nn.Module
    weave: prw.Weave | None
    experts: int


def base_weights(geometry: Geometry) -> dict[str, Tensor]:
    """Make the base's weights once; every case shares them."""
    torch.manual_seed(0)
    return flux(geometry, "cpu").state_dict()


def flux(geometry: Geometry, device: str) -> nn.Module:
    """Make a FLUX."""
    # FLUX.1's rotary axes are 16, 56 and 56 of a head's 128 features.
    axes = geometry.head // 8, geometry.head * 7 // 16, geometry.head * 7 // 16
    with torch.device(device):
        heads = {"attention_head_dim": geometry.head, "num_attention_heads": geometry.heads}
        blocks = {"num_layers": geometry.double, "num_single_layers": geometry.single}
        text = {"joint_attention_dim": geometry.width * 4 // 3, "pooled_projection_dim": geometry.width // 4}
        inputs = {"in_channels": 64, "guidance_embeds": True, "axes_dims_rope": axes}
        return FluxTransformer2DModel(**inputs, **blocks, **heads, **text)


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
    randomise(model, ".prw_B")
    return model, weave


def with_lora(geometry: Geometry, weights: dict[str, Tensor]) -> nn.Module:
    """PEFT's LoRA on the very modules that a pool takes."""
    _, weave = with_pool(geometry, weights, 1)
    targets = [module for site in weave.sites for module in site.modules]
    config = LoraConfig(r=geometry.rank, lora_alpha=int(SCALE * geometry.rank), target_modules=targets)
    model = get_peft_model(plain(geometry, weights), config)
    randomise(model, ".lora_B")
    return model


@torch.no_grad()
def randomise(model: nn.Module, part: str) -> None:
    """Give every B values, as after training: zeros are no fair input."""
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.normal_(std=0.02)


def models(geometry: Geometry, device: Device, pools: Sequence[int]) -> dict[str, Model]:
    """Build the cases, on shared weights, in the dtype that is timed."""
    where, dtype = device.torch_device, getattr(torch, device.dtype)
    weights = {name: weight.to(where, dtype) for name, weight in base_weights(geometry).items()}
    found = {PLAIN_FLUX: Model(plain(geometry, weights), None, 0)}
    found[LORA] = Model(with_lora(geometry, weights), None, 1)
    found |= {f"prw, N={n}": Model(*with_pool(geometry, weights, n), n) for n in pools}
    for one in found.values():
        one.model.to(where, dtype)
    return found


def inputs(geometry: Geometry, device: Device) -> dict[str, Tensor]:
    """Make one batch: latents of one picture, its text, a timestep; positions stay in float32."""
    torch.manual_seed(1)
    tokens, dtype = geometry.side**2, getattr(torch, device.dtype)
    rows, columns = torch.meshgrid(torch.arange(geometry.side), torch.arange(geometry.side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(tokens, 3)
    found = {
        "hidden_states": torch.randn(1, tokens, 64),
        "encoder_hidden_states": torch.randn(1, geometry.text, geometry.width * 4 // 3),
        "pooled_projections": torch.randn(1, geometry.width // 4),
        "timestep": torch.full((1,), 0.5),
        "guidance": torch.full((1,), 3.5),
    }
    found = {name: value.to(device.torch_device, dtype) for name, value in found.items()}
    # Gradients go down to the input in every case, also in the plain one, which trains nothing.
    found["hidden_states"].requires_grad_()
    positions = {"img_ids": places.float(), "txt_ids": torch.zeros(geometry.text, 3)}
    return found | {name: value.to(device.torch_device) for name, value in positions.items()}


def step(one: Model, batch: dict[str, Tensor], passes: Pass) -> Case:
    """Make a denoising step of a case; or a training step with AdamW, to which a pool adds its loss."""
    forward = partial(one.model.train(passes == "training"), **batch, return_dict=False)
    if passes == "forward":
        return Case(torch.no_grad()(forward))
    trained = [parameter for parameter in one.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    target = torch.zeros_like(batch["hidden_states"])

    def run() -> None:
        if one.weave is None:
            loss = nn.functional.mse_loss(forward()[0], target)
        else:
            with one.weave.record() as routing:
                task = nn.functional.mse_loss(forward()[0], target)
            loss = task + prw.veteran_loss(routing, rho=RHO, alpha=ALPHA)
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    def clear() -> None:
        for parameter in (*trained, batch["hidden_states"]):
            parameter.grad = None

    return Case(run, clear)


def steps(
    passes: Pass, built: Mapping[str, Model], seconds: Mapping[str, list[float]], batch: dict[str, Tensor]
) -> list[Step]:
    """Turn seconds into rows, each beside the plain model and beside LoRA; nothing without these two."""
    found = []
    for name, values in seconds.items() if {PLAIN_FLUX, LORA} <= seconds.keys() else ():
        model, weave, experts = built[name]
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        shares = None
        if weave is not None:
            with weave.record() as routing, torch.no_grad():
                model(**batch)
            shares = routed(routing)
        what = "denoising step" if passes == "forward" else "training step"
        case = {"case": name, "what": what, "experts": experts, "trainable": trained, "routed": shares}
        ratios = beside(values, seconds[PLAIN_FLUX]) | {"ratio_to_lora": paired(values, seconds[LORA])[0]}
        found.append(Step(**case, **ratios))
    return found
