"""A tiny continual-learning run with the stock Trainer, to be interrupted and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

import prw
from prw.integrations.transformers import PrwCallback

TASKS = {"up": 3, "down": 5}


class Bare(nn.Module):
    """A model that transformers does not know; a Trainer saves all its weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """Give loss and logits as a plain dictionary."""
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": output.loss, "logits": output.logits}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, attention_dropout=0.1, **shape))


def plain() -> tuple[nn.Module, prw.Weave]:
    model = tiny_llama()
    return model, prw.inject(model, rank=2)


def wrapped() -> tuple[nn.Module, prw.Weave]:
    model = get_peft_model(tiny_llama(), prw.PrwConfig(rank=2))
    return model, prw.Weave(model)


def bare() -> tuple[nn.Module, prw.Weave]:
    model = Bare(tiny_llama())
    return model, prw.inject(model, rank=2)


MAKERS: dict[str, Callable[[], tuple[nn.Module, prw.Weave]]] = {"plain": plain, "peft": wrapped, "bare": bare}


def sequences(task: str, count: int = 10) -> list[dict[str, Tensor]]:
    """Sequences of numbers that rise by the task's step, modulo 16; every third one is half pads."""
    generator = torch.Generator().manual_seed(TASKS[task])
    rows = []
    for index in range(count):
        tokens = (torch.randint(16, (1,), generator=generator) + TASKS[task] * torch.arange(8)) % 16
        real = torch.arange(8) < (4 if index % 3 == 0 else 8)
        labels = torch.where(real, tokens, torch.full_like(tokens, -100))
        rows.append({"input_ids": tokens, "attention_mask": real.long(), "labels": labels})
    return rows


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Stops a Trainer after some steps, as a kill would, but without the bother."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step or control.should_training_stop


class Run:
    """One process's part of a run in a folder."""

    def __init__(self, folder: Path, kind: str = "plain", curriculum: prw.Curriculum | None = None) -> None:
        self.model, self.weave = MAKERS[kind]()
        self.curriculum = curriculum or prw.Curriculum(
            [
                prw.Stage("up", rho=1.0, alpha=0.0, steps=5, lr=1e-2),
                prw.Stage("down", rho=0.8, alpha=0.5, steps=4, lr=1e-2),
            ]
        )
        self.callback = PrwCallback(self.weave, self.curriculum, folder)
        self.logs: list[dict[str, float]] = []
        self.resumed: list[str | None] = []

    def trainer(self, stage: prw.Stage, stop: int | None = None, **options: Any) -> Trainer:
        """Make the stage's Trainer."""
        fixed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
        given = {"save_steps": 2, "weight_decay": 0.1, **fixed, **quiet, **self.callback.arguments, **options}
        return Trainer(
            self.model,
            TrainingArguments(**given),
            train_dataset=sequences(stage.name),
            callbacks=[self.callback, StopAt(stop)],
        )

    def train(self, resume: bool = False, stop: tuple[str, int] = ("", 0), **options: Any) -> None:
        """Walk the curriculum, until the end or until a stage has so many steps."""
        for stage in self.callback.stages(resume=resume):
            trainer = self.trainer(stage, stop[1] if stage.name == stop[0] else None, **options)
            self.resumed.append(self.callback.checkpoint)
            trainer.train(resume_from_checkpoint=self.callback.checkpoint)
            self.logs += [log for log in trainer.state.log_history if "loss" in log]

    def state(self) -> dict[str, Tensor]:
        """Give all weights."""
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}


@pytest.fixture
def make_run() -> Iterator[type[Run]]:
    """The maker of runs; bars are switched off meanwhile."""
    logging.disable_progress_bar()
    yield Run
    logging.enable_progress_bar()
