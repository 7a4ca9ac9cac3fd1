"""Teaches a tiny Llama two tasks with the stock Trainer: `python examples/03_continual_causal_lm.py`.

One Trainer per stage; `PrwCallback` adds the expert and the veteran loss, and logs the routing. A run that
was cut off goes on with `main(folder, resume=True)`.
"""

import tempfile

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

import prw
from prw.integrations.transformers import PrwCallback

RULES = {"up": 1, "skip": 3}  # next number = this one + rule, modulo 16


def sequences(task: str) -> list[dict[str, Tensor]]:
    rows = (torch.arange(16).unsqueeze(1) + RULES[task] * torch.arange(8)) % 16
    return [{"input_ids": row, "labels": row} for row in rows]


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, task: str) -> float:
    rows = torch.stack([row["input_ids"] for row in sequences(task)])
    return model.eval()(input_ids=rows, labels=rows).loss.item()


def main(folder: str, resume: bool = False, steps: int = 40) -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=16))
    weave = prw.inject(model, target="kv", rank=8)
    curriculum = prw.Curriculum([prw.Stage(task, rho=0.8, alpha=0.5, steps=steps, lr=2e-2) for task in RULES])

    callback = PrwCallback(weave, curriculum, folder)
    for stage in callback.stages(resume=resume):
        quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
        args = TrainingArguments(**callback.arguments, per_device_train_batch_size=16, use_cpu=True, **quiet)
        trainer = Trainer(model, args, train_dataset=sequences(stage.name), callbacks=[callback])
        trainer.train(resume_from_checkpoint=callback.checkpoint)

    for task in RULES:
        with weave.as_of(task):
            recalled = loss_of(model, task)
        print(f"{task}: {loss_of(model, task):.3f} with the whole pool, {recalled:.3f} as of its stage")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
