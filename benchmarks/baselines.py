"""Every competitor at a point, on the same weights: plain projections, PEFT, others' recipes, pools."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import ArrowConfig, LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from peft.tuners import lora
from peft.tuners.xlora.layer import XLoraLinearLayer
from torch import Tensor, nn
from transformers.integrations.moe import grouped_mm_experts_forward

import prw
from benchmarks.cases import COMPILED, LORA, LORA_32, OURS, PLAIN, STACKED
from benchmarks.points import SCALE, Adapter, Bases, Weights, hidden_of, weights_of
from benchmarks.schema import Pass, Point, Routed
from benchmarks.timing import Case, tidy


class KeysAndValues(nn.Module):
    """The two projections of one attention block, frozen."""

    def __init__(self, bases: Bases) -> None:
        super().__init__()
        self.to_k, self.to_v = (frozen_linear(*base) for base in bases)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(hidden), self.to_v(hidden)


class Block(nn.Module):
    """A model with one site: targets are found in a model, not in their own parent."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.attn = KeysAndValues(weights.bases)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn(hidden)


class Stacked(nn.Module):
    """One Linear that gives keys and values side by side, [batch, tokens, 2 d]."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.to_kv = frozen_linear(*(torch.cat(pair) for pair in zip(*weights.bases, strict=True)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return self.to_kv(hidden).chunk(2, dim=-1)


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a Linear of given tensors, without a copy."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class Top1(nn.Module):
    """The router of baselines that have none: it chooses as prw's in evaluation; the newest vector trains."""

    def __init__(self, routers: Tensor) -> None:
        super().__init__()
        self.frozen = nn.Parameter(routers[:-1].clone(), requires_grad=False)
        self.newest = nn.Parameter(routers[-1:].clone())

    def probabilities(self, hidden: Tensor) -> Tensor:
        vectors = torch.cat([self.frozen, self.newest])  # [N, d]
        return (hidden.to(vectors.dtype) @ vectors.T).softmax(-1)  # [..., d] -> [..., N]

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        best = self.probabilities(hidden).max(-1)  # [..., N] -> [...]
        return best.indices, best.values


# PEFT's own classes: LoRA, X-LoRA's layer, Arrow.


def lora_config(point: Point) -> LoraConfig:
    """Give LoRA on K and V."""
    return LoraConfig(r=point.rank, lora_alpha=int(SCALE * point.rank), target_modules=["to_k", "to_v"])


def lora_layers(model: nn.Module) -> list[lora.Linear]:
    """Find the wrapped projections, K first."""
    return [module for module in model.modules() if isinstance(module, lora.Linear)]


@torch.no_grad()
def fill_lora(model: nn.Module, adapter: str, pairs: tuple[Adapter, Adapter]) -> None:
    """Give an adapter the point's weights."""
    for layer, pair in zip(lora_layers(model), pairs, strict=True):
        layer.lora_A[adapter].weight.copy_(pair.down)
        layer.lora_B[adapter].weight.copy_(pair.up)


def train_only(model: nn.Module, adapter: str) -> None:
    """Freeze every LoRA pair but one adapter's."""
    for part in (part for layer in lora_layers(model) for part in (layer.lora_A, layer.lora_B)):
        for name, linear in part.items():
            linear.weight.requires_grad_(name == adapter)


def peft_lora(point: Point, weights: Weights, expert: int = -1) -> PeftModel:
    """PEFT's LoRA on K and V: one of the pool's experts, the newest, as the only one."""
    model = get_peft_model(Block(point, weights), lora_config(point))
    fill_lora(model, "default", weights.adapters[expert])
    return model


class XLora(nn.Module):
    """X-LoRA's layers under scalings that a plain router makes, in one pass; X-LoRA itself takes two."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        names = [str(index) for index in range(point.experts)]
        self.model = get_peft_model(Block(point, weights), lora_config(point), adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, lora_config(point))
        for name, pairs in zip(names, weights.adapters, strict=True):
            fill_lora(self.model, name, pairs)
        self.model.base_model.set_adapter(names)
        train_only(self.model, names[-1])
        self.router = Top1(weights.routers)
        config = XLoraConfig(hidden_size=point.width, adapters=dict.fromkeys(names, ""))
        self.layers = [
            XLoraLinearLayer(SimpleNamespace(disabled=False), layer, layer.forward, index, config)
            for index, layer in enumerate(lora_layers(self.model))
        ]

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        probabilities = self.router.probabilities(hidden).to(hidden.dtype)  # [batch, tokens, N]
        # -> [batch, tokens, layers, N]
        scalings = probabilities.unsqueeze(2).expand(-1, -1, len(self.layers), -1)
        return tuple(layer.forward(hidden, scalings=scalings) for layer in self.layers)


def arrow(point: Point, weights: Weights) -> nn.Module:
    """PEFT's Arrow with top_k = 1 over the pool's experts; its router is its own and learns nothing."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / str(index)) for index in range(point.experts)]
        for index, path in enumerate(paths):
            peft_lora(point, weights, index).save_pretrained(path)
        model = create_arrow_model(
            base_model=Block(point, weights),
            task_specific_adapter_paths=paths,
            arrow_config=ArrowConfig(top_k=1, router_temperature=1.0),
        )
    train_only(model, f"task_{point.experts - 1}")
    return model


class MixLoraLoop(nn.Module):
    """The base once for all tokens; then per expert: find its rows, gather, LoRA, weigh, add at the rows."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.base, self.router = KeysAndValues(weights.bases), Top1(weights.routers)
        flat = [matrix.clone() for pairs in weights.adapters for pair in pairs for matrix in pair]
        newest = 4 * (point.experts - 1)  # A and B of K, A and B of V, of each expert
        self.experts = nn.ParameterList(
            nn.Parameter(matrix, requires_grad=index >= newest) for index, matrix in enumerate(flat)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        flat = hidden.flatten(0, 1)  # [batch, tokens, d] -> [T, d]
        expert_ids, factors = self.router(flat)  # [T]
        outs, dtype = self.base(flat), self.experts[0].dtype
        for index in range(len(self.experts) // 4):
            (rows,) = torch.where(expert_ids == index)
            chosen, factor = (
                flat[rows].to(dtype),
                (factors[rows] * SCALE).unsqueeze(-1),
            )  # [rows, d], [rows, 1]
            matrices = iter(self.experts[4 * index : 4 * index + 4])
            for out, down, up in zip(outs, matrices, matrices, strict=True):
                low = nn.functional.linear(chosen, down)  # [rows, d] -> [rows, r]
                out.index_add_(0, rows, (nn.functional.linear(low, up) * factor).to(out.dtype))
        return tuple(out.view_as(hidden) for out in outs)


class Stack(nn.Module):
    """The LoRA pairs of one projection, stacked as transformers' grouped experts are: up is A, down is B."""

    has_gate = has_bias = is_transposed = has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(self, adapters: tuple[Adapter, ...]) -> None:
        super().__init__()
        self.num_experts = len(adapters)
        self.up_proj = nn.Parameter(torch.stack([adapter.down for adapter in adapters]))  # [N, r, d]
        self.down_proj = nn.Parameter(torch.stack([adapter.up for adapter in adapters]))  # [N, d, r]
        self.act_fn = nn.Identity()

    def forward(self, flat: Tensor, expert_ids: Tensor, factors: Tensor) -> Tensor:
        return grouped_mm_experts_forward(self, flat.to(self.up_proj.dtype), expert_ids, factors)


class GroupedRecipe(nn.Module):
    """The base, plus transformers' own `grouped_mm_experts_forward` with A and B as its experts."""

    def __init__(self, point: Point, weights: Weights) -> None:
        super().__init__()
        self.base, self.router = KeysAndValues(weights.bases), Top1(weights.routers)
        self.stacks = nn.ModuleList(map(Stack, zip(*weights.adapters, strict=True)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        flat = hidden.flatten(0, 1)  # [batch, tokens, d] -> [T, d]
        expert_ids, factors = self.router(flat)  # [T]
        picked = expert_ids.unsqueeze(-1), (factors * SCALE).unsqueeze(-1)  # [T, 1]
        outs = self.base(flat)
        return tuple(
            (out + stack(flat, *picked)).view_as(hidden) for out, stack in zip(outs, self.stacks, strict=True)
        )


def pool(
    point: Point, weights: Weights, kernel: str = "auto", target: str = "kv"
) -> tuple[nn.Module, prw.Weave]:
    """Make a pool of the point's experts, of which the newest and its router vectors train."""
    model, names = Block(point, weights), [f"expert_{index}" for index in range(point.experts)]
    settings = {"rank": point.rank, "alpha": SCALE * point.rank, "granularity": point.granularity}
    weave = prw.inject(model, target, names, kernel=kernel, **settings)
    filled = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # prw_A0, prw_B0, ... as in every checkpoint
            kind, _, rest = name.partition(".prw_")[2].partition(".")
            if not rest or kind.startswith("noise"):
                continue
            index = int("".join(filter(str.isdigit, kind)))
            pair = weights.adapters[index]["to_v" in name]
            values = {"A": pair.down, "B": pair.up}
            parameter.copy_(values.get(kind[0], weights.routers[index : index + 1]))
            filled += 1
    assert filled == (1 + 2 * len(target)) * point.experts
    return model, weave


def compiled_reference(point: Point, weights: Weights) -> nn.Module:
    """torch.compile of a pool whose kernel is the plain loop over experts."""
    torch.compiler.reset()  # torch gives up on code that it compiled often
    return torch.compile(pool(point, weights, "reference")[0])  # type: ignore[return-value]


BASELINES: Mapping[str, Callable[[Point, Weights], nn.Module]] = {
    PLAIN: Block,
    STACKED: Stacked,
    LORA: peft_lora,
    LORA_32: peft_lora,
    "PEFT X-LoRA layer": XLora,
    "PEFT Arrow": arrow,
    "MixLoRA-style loop": MixLoraLoop,
    "transformers grouped_mm": GroupedRecipe,
    COMPILED: compiled_reference,
}
"""What is not prw's own hot path; README.md says what each does and what trains."""


@dataclass(frozen=True)
class Peer:
    """A competitor at a point: a model that takes hidden states [batch, tokens, d], gives keys and values."""

    name: str
    point: Point
    model: nn.Module
    hidden: Tensor
    weave: prw.Weave | None = None

    def trainable(self) -> list[nn.Parameter]:
        """List what trains."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def case(self, passes: Pass, gradients: tuple[Tensor, ...]) -> Case:
        """Make a case: a forward in evaluation, or a forward and backward in training from gradients."""
        model = self.model.train(passes == "training")
        if passes == "forward":
            return Case(torch.no_grad()(lambda: model(self.hidden)))
        trained = [*self.trainable(), self.hidden]

        def training() -> None:
            torch.autograd.backward(tuple(model(self.hidden)), gradients)

        def clear() -> None:
            for parameter in trained:
                parameter.grad = None

        return Case(training, clear)

    def recorded(self) -> tuple[Routed | None, int]:
        """Record where a pool sends its input, and how many experts serve: counted, not assumed."""
        if self.weave is None:
            return None, 0
        with self.weave.record() as routing, torch.no_grad():
            self.model(self.hidden)
        return routed(routing), int((routing.usage().sum(0) > 0).sum())


def routed(routing: prw.Routing) -> Routed:
    """Summarise a record over all sites."""
    usage = routing.usage().mean(0)  # [sites, N] -> [N]
    least, most = tidy(float(usage.min())), tidy(float(usage.max()))
    return Routed(newest=tidy(routing.share()), least=least, most=most)


def build(name: str, point: Point, device: torch.device) -> Peer:
    """Build a competitor on a device: a key of `BASELINES`, "prw", or "prw " and a kernel's name.

    Raises:
        ValueError: if there is no such competitor.
    """
    if name in (LORA, LORA_32):
        point = point.but(experts=1, granularity="token", routing="uniform")
    weights, weave = weights_of(point, device), None
    if name in BASELINES:
        model = BASELINES[name](point, weights).to(device)
    elif name == OURS or name.startswith("prw "):
        model, weave = pool(point, weights, name.removeprefix("prw").strip() or "auto")
    else:
        raise ValueError(f"{name!r} is no competitor; there are {', '.join(BASELINES)}, prw, prw <kernel>")
    if name != LORA_32:
        model.to(getattr(torch, point.dtype))
    return Peer(name, point, model.train(), hidden_of(point, device), weave)
