"""What routed experts on K and V cost over two plain projections, and over PEFT's LoRA on the same two.

Rounds take the cases in turn, since a machine's speed drifts: what counts are ratios.
Only the newest expert and its gate train in prw's cases, both LoRA pairs in PEFT's.
"""

import statistics
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import prw

WIDTH, RANK, BATCH, TOKENS = 512, 16, 4, 256
ROUNDS, WARM_UP = 21, 3

Case = Callable[[], None]


class KeysAndValues(nn.Module):
    """The two projections of one attention block, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH)
        self.requires_grad_(False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(hidden), self.to_v(hidden)


class Block(nn.Module):
    """A model with one site: targets are found in a model, not in their own parent."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = KeysAndValues()

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn(hidden)


def plain() -> nn.Module:
    return Block()


def peft_lora() -> nn.Module:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["to_k", "to_v"])
    return get_peft_model(Block(), config)


def routed(experts: int) -> nn.Module:
    model = Block()
    weave = prw.inject(model, target="kv", experts=["expert_0"], rank=RANK)
    for index in range(1, experts):
        weave.add_expert(f"expert_{index}")
    return model


def cases() -> dict[str, nn.Module]:
    built = {"two nn.Linear": plain(), "PEFT LoRA": peft_lora(), "prw, N=1": routed(1), "prw, N=5": routed(5)}
    return {name: model.train() for name, model in built.items()}


def forward_pass(model: nn.Module, hidden: Tensor) -> Case:
    @torch.no_grad()
    def run() -> None:
        model(hidden)

    return run


def training_step(model: nn.Module, hidden: Tensor) -> Case:
    def run() -> None:
        keys, values = model(hidden)
        torch.autograd.backward((keys, values), (torch.ones_like(keys), torch.ones_like(values)))

    return run


@pytest.mark.parametrize("what", [forward_pass, training_step])
def bench_routed_projection(benchmark: Any, what: Callable[[nn.Module, Tensor], Case]) -> None:
    torch.manual_seed(0)
    # Gradients reach the input in every case, as inside a network whose earlier blocks train.
    hidden = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    runs = {name: what(model, hidden) for name, model in cases().items()}
    for run in runs.values():
        run()
    turns = cycle(runs.values())

    def next_case() -> tuple[tuple[Case], dict[str, Any]]:
        return (next(turns),), {}

    rounds, warm_up = ROUNDS * len(runs), WARM_UP * len(runs)
    benchmark.pedantic(lambda run: run(), setup=next_case, rounds=rounds, warmup_rounds=warm_up)
    benchmark.extra_info.update(
        torch=torch.__version__, threads=torch.get_num_threads(), rank=RANK, width=WIDTH
    )
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.data
        benchmark.extra_info["cases"] = rows_of(
            {name: seconds[i :: len(runs)] for i, name in enumerate(runs)}
        )


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median and interquartile range of each case in milliseconds, and its ratio to the first."""
    base = statistics.median(next(iter(seconds.values())))
    rows = []
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(
            {"case": name, "median_ms": 1e3 * median, "iqr_ms": 1e3 * (high - low), "ratio": median / base}
        )
    return rows
