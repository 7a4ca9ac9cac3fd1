"""What each of two gloo processes does: `python -m tests.prw.scale.two_ranks RANK FOLDER`."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import prw

WIDTH, STEPS = 8, 3
SETTINGS = {"rank": 3, "noise": False}  # each rank draws its own noise, so without it two equal one


class Attention(nn.Module):
    """The plainest attention there is."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.scaled_dot_product_attention(
            self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        )


class Blocks(nn.Module):
    """Two attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def build() -> tuple[Blocks, prw.Weave]:
    """A model with a veteran and a newest expert; the sign of the first feature chooses between the two."""
    torch.manual_seed(0)
    model = Blocks()
    weave = prw.inject(model, experts=["veteran"], **SETTINGS)
    weave.add_expert("newest")
    point(model)
    return model, weave


def point(model: nn.Module) -> None:
    """Give every B a value, and every router an opinion about the first feature only."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".prw_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if ".prw_gate" in name:
                parameter.zero_()[0, 0] = 1.0 if ".prw_gate1" in name else -1.0


def batch(rank: int, step: int) -> Tensor:
    """Rank 0 sees what goes to the newest expert; in the first step rank 1 sees nothing of it."""
    hidden = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))
    hidden[..., 0] = 3.0 if rank == 0 or step > 0 else -3.0
    return hidden


def loss_of(model: nn.Module, weave: prw.Weave, rank: int, step: int) -> tuple[Tensor, float]:
    """Loss and share of a rank's step."""
    with weave.record() as routing:
        task = model(batch(rank, step)).square().mean()
    return task + prw.veteran_loss(routing, rho=0.8, alpha=0.5), routing.share()


def optimiser(weave: prw.Weave) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weave.trainable_parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1)


def train(model: nn.Module, weave: prw.Weave, rank: int) -> list[float]:
    """Take the steps; give the shares."""
    steps, shares = optimiser(weave), []
    for step in range(STEPS):
        loss, share = loss_of(model, weave, rank, step)
        loss.backward()
        steps.step()
        steps.zero_grad()
        shares.append(share)
    return shares


def ddp(rank: int, folder: Path) -> list[float]:
    """Train under DDP, without find_unused_parameters, and save."""
    model, weave = build()
    shares = train(DistributedDataParallel(model), weave, rank)
    if rank == 0:
        weave.save_pretrained(folder / "ddp")
    return shares


def shard(model: nn.Module, blocks: nn.ModuleList) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def fsdp2(rank: int, folder: Path) -> dict[str, object]:
    """Save split weights, train them, save again, load them back, and try what must be refused."""
    model, weave = build()
    shard(model, model.blocks)
    weave.save_pretrained(folder / "fsdp2-start")
    weave.export_lora("newest", folder / "fsdp2-lora")
    shares = train(model, weave, rank)
    weave.save_pretrained(folder / "fsdp2")
    trained = model(batch(rank, 9)).detach()
    prw.load(model, folder / "fsdp2-start")
    start = model(batch(rank, 9)).detach()
    prw.load(model, folder / "fsdp2")
    refused = ""
    try:
        weave.add_expert("late")
    except prw.UnsupportedError as error:
        refused = str(error)
    return {
        "shares": shares,
        "start differs": not torch.equal(start, trained),
        "loaded again": torch.equal(model(batch(rank, 9)), trained),
        "refused": refused,
        "experts": weave.experts,
    }


def fsdp2_by_peft(folder: Path) -> None:
    """Save a split PeftModel the way PEFT and accelerate do: from the state of the whole model."""
    torch.manual_seed(0)
    wrapped: PeftModel = get_peft_model(Blocks(), prw.PrwConfig(experts=["veteran", "newest"], **SETTINGS))
    point(wrapped)
    shard(wrapped, wrapped.get_base_model().blocks)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(wrapped, options=options)
    if dist.get_rank() == 0:
        wrapped.save_pretrained(str(folder / "fsdp2-peft"), state_dict=state)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found = {"ddp": {"shares": ddp(rank, folder)}, "fsdp2": fsdp2(rank, folder)}
    fsdp2_by_peft(folder)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
