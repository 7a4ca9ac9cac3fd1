"""Stock LoRAs for the tests of import and export."""

import copy

import torch
from peft import LoraConfig, get_peft_model


def lora_of(base, **options):
    """A stock PEFT LoRA that does something, on a copy of a model."""
    options = {"r": 3, "lora_alpha": 7, "target_modules": ["to_k", "to_v"], **options}
    wrapped = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return wrapped.eval()


def state_of(lora):
    """The LoRA's weights as PEFT's file names them, without PEFT's prefix."""
    names = {name: p for name, p in lora.named_parameters() if ".lora_" in name}
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): p.detach().clone()
        for name, p in names.items()
    }


def prefixed(weights, prefix="transformer."):
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def lora_folder(model, path, **options):
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["to_k", "to_v"], **options})
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(path)
    return wrapped.eval()
