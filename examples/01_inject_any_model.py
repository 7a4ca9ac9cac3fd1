"""Gives a Llama and a GPT-2 a pool of two experts, looks at the routing, and takes the pool out again.

Any model with attention will do (docs/supported-models.md); these are tiny and random, so it runs anywhere:
`python examples/01_inject_any_model.py`.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import prw


def tiny_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,  # grouped-query attention: fewer key and value heads than queries
            vocab_size=64,
        )
    ).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    """Its queries, keys and values come from one projection; only the rows of keys and values get experts."""
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).eval()


@torch.no_grad()
def show(model: PreTrainedModel) -> None:
    tokens = torch.randint(64, (2, 8))
    before = model.requires_grad_(False)(tokens).logits  # frozen, as injection leaves the base

    weave = prw.inject(model, target="kv", experts=["french"], rank=4, alpha=8)
    same = torch.equal(model(tokens).logits, before)
    print("bit-equal to the frozen base after injection:", same)
    for site in weave.sites:
        print("a site:", site.name, "with", ", ".join(site.modules))

    weave.add_expert("chemistry")
    with weave.record() as routing:
        model(tokens)
    print("experts:", weave.experts, " share of the newest:", round(routing.share(), 2))

    weave.eject()
    print("and after eject:", torch.equal(model(tokens).logits, before))


def main() -> None:
    torch.manual_seed(0)
    for model in (tiny_llama(), tiny_gpt2()):
        print(type(model).__name__)
        show(model)


if __name__ == "__main__":
    main()
