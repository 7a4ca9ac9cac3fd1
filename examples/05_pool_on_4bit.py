"""Puts a pool on a Llama whose weights are in 4 bits, trains one expert, saves it, and loads it again.

The base stays quantised; experts and routers are float32 beside it. The model is tiny and random, so it runs
anywhere: `python examples/05_pool_on_4bit.py`. It needs bitsandbytes: `pip install bitsandbytes`.
"""

import importlib.util
import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import prw


def saved_llama(folder: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(
        folder
    )


def in_four_bits(folder: str) -> LlamaForCausalLM:
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits)


def main(steps: int = 20) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        saved_llama(f"{folder}/base")
        model = in_four_bits(f"{folder}/base").train()
        key = model.model.layers[0].self_attn.k_proj
        weave = prw.inject(model, experts=["french"], rank=4)
        weave.add_expert("chemistry")
        print("a key projection:", type(key).__name__, "with weights in", key.weight.dtype)

        tokens = torch.randint(64, (4, 16))
        optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=1e-2)
        losses = []
        for _ in range(steps):
            with weave.record() as routing:
                loss = model(tokens, labels=tokens).loss
            losses.append(loss.item())
            (loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
            optimiser.step()
            optimiser.zero_grad()
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, share of the newest {routing.share():.2f}")

        weave.save_pretrained(f"{folder}/pool")
        again = prw.load(in_four_bits(f"{folder}/base"), f"{folder}/pool")
        print("loaded onto a fresh 4-bit base:", again.experts)


if __name__ == "__main__":
    if importlib.util.find_spec("bitsandbytes"):
        main()
    else:
        print("skipped: this example needs bitsandbytes, which is not installed (pip install bitsandbytes)")
