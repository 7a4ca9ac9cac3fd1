"""Makes a pool of LoRAs that exist already: `python examples/04_pool_from_loras.py`.

Two LoRAs are made with stock PEFT, one per toy task (a rule for the next of eight numbers). Imported, they
are frozen veterans with ranks of their own; their router vectors learn which token needs which.
"""

import copy
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import prw

RULES = {"up": (0, 1), "down": (8, -1)}  # the eight numbers from here; next number = this one + step
RANKS = {"up": 16, "down": 8}


def loss_of(model: nn.Module, task: str) -> Tensor:
    first, step = RULES[task]
    tokens = first + (torch.randint(8, (32, 1)) + step * torch.arange(8)) % 8
    return model(input_ids=tokens, labels=tokens).loss


def train(model: nn.Module, parameters: list[nn.Parameter], tasks: list[str], steps: int) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=2e-2)
    for step in range(steps):
        optimiser.zero_grad()
        loss_of(model, tasks[step % len(tasks)]).backward()
        optimiser.step()


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=16, initializer_range=0.2))
    with tempfile.TemporaryDirectory() as folder:
        for task, rank in RANKS.items():
            lora = copy.deepcopy(base)
            lora.add_adapter(LoraConfig(r=rank, target_modules=["k_proj", "v_proj"]))
            train(lora, [p for p in lora.parameters() if p.requires_grad], [task], steps)
            lora.save_pretrained(Path(folder) / task)
            print(f"the LoRA {task}: loss {loss_of(lora, task):.2f}, base {loss_of(base, task):.2f}")
        weave = prw.inject(base, target="kv", rank=8, gate="unit", train_veteran_gates=True)
        for task in RULES:
            report = weave.import_lora(Path(folder) / task, name=task)
            print(f"{task}: rank {set(report.ranks.values())}, dropped {len(report.dropped)} others")
    train(base, weave.trainable_parameters(), list(RULES), steps)
    base.eval()
    print(", ".join(f"the pool on {task}: loss {loss_of(base, task):.2f}" for task in RULES))
    print(weave.summary())


if __name__ == "__main__":
    main()
