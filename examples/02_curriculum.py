"""Teaches a tiny Llama three toy tasks, one expert each: `python examples/02_curriculum.py`.

A task is a rule for the next number modulo 16 (a guess costs ln 16 = 2.77); `as_of` recalls what is lost.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import prw

RULES = {"up": 1, "down": -1, "skip": 3}  # next number = this one + rule


def sequences(task: str) -> Tensor:
    return (torch.randint(16, (32, 1)) + RULES[task] * torch.arange(8)) % 16


def train(model: LlamaForCausalLM, weave: prw.Weave, stage: prw.Stage) -> None:
    optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=stage.lr)
    model.train()
    for _ in range(stage.steps):
        tokens = sequences(stage.name)
        with weave.record() as routing:
            loss = model(tokens, labels=tokens).loss
        loss = loss + prw.veteran_loss(routing, rho=stage.rho, alpha=stage.alpha)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, task: str) -> float:
    torch.manual_seed(1)
    tokens = sequences(task)
    return model(tokens, labels=tokens).loss.item()


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=16)).eval()
    weave = prw.inject(model, target="kv", rank=8)
    stages = [prw.Stage(task, rho=0.8, alpha=0.5, steps=steps, lr=2e-2) for task in RULES]
    after_own_stage = {}
    for stage in prw.Curriculum(stages).stages(weave):
        train(model, weave, stage)
        after_own_stage[stage.name] = loss_of(model, stage.name)
    for task, loss in after_own_stage.items():
        with weave.as_of(task):
            recalled = loss_of(model, task)
        print(
            f"{task}: {loss:.3f} after its stage, {loss_of(model, task):.3f} at the end, as of {recalled:.3f}"
        )


if __name__ == "__main__":
    main()
