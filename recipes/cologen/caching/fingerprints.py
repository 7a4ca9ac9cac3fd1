"""Short hashes of all that shapes an encoding: pictures, prompts, the weights and settings of the encoders.

A key is made of what went in, never of a step or a file's name. So an entry of another VAE, another size or
cut, another annotator or wording has another key, and cannot be read by mistake.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FORM = 1
"""Version of how encodings are made and kept; one more wherever the recipe's own part of it changes."""
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")


def picture_key(pixels: NDArray[np.uint8]) -> str:
    """Key of a picture as it goes into the VAE: its pixels and its height and width."""
    digest = hashlib.blake2b(f"picture {pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def prompt_key(prompt: str) -> str:
    """Key of a prompt as it goes to the tokenizers."""
    return hashlib.blake2b(f"prompt {prompt}".encode(), digest_size=16).hexdigest()


def vae_fingerprint(model: Any) -> str:
    """Hash of what makes latents of pixels: the VAE's class, settings, number format and every weight."""
    digest = hashlib.blake2b(f"latents {FORM}".encode(), digest_size=8)
    _add_module(digest, model.vae)
    return digest.hexdigest()


def text_fingerprint(model: Any) -> str:
    """Hash of what makes embeddings of prompts: tokenizers, their lengths, text encoders and every weight."""
    digest = hashlib.blake2b(f"text {FORM} {type(model).__qualname__}".encode(), digest_size=8)
    digest.update(str(getattr(model, "max_text_tokens", None)).encode())
    for name in _TOKENIZERS:
        if (tokenizer := getattr(model, name, None)) is not None:
            digest.update(_tokenizer_facts(tokenizer).encode())
    for name in _TEXT_ENCODERS:
        if (encoder := getattr(model, name, None)) is not None:
            _add_module(digest, encoder)
    return digest.hexdigest()


def _tokenizer_facts(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # How a call pads and cuts is left behind in the tokenizer; how the recipe calls it is not.
    words = json.dumps(
        {key: facts[key] for key in facts if key not in ("padding", "truncation")}, sort_keys=True
    )
    template = getattr(tokenizer, "chat_template", None)
    return f"{type(tokenizer).__name__} {tokenizer.model_max_length} {template} {words}"


def _add_module(digest: hashlib.blake2b, module: nn.Module) -> None:
    digest.update(f"{type(module).__name__} {_settings(module)}".encode())
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            _add_tensor(digest, name, value)


def _settings(module: nn.Module) -> str:
    """A module's config without what says where it came from and with which library it was written."""
    config = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {key: value for key, value in values.items() if not key.startswith("_") and "version" not in key}
    return json.dumps(kept, sort_keys=True, default=str)


def _add_tensor(digest: hashlib.blake2b, name: str, value: Tensor) -> None:
    """A weight by name, format, shape and bits; one that is quantised is made of several."""
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    if hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            _add_tensor(digest, f"{name}.{inner}", getattr(value, inner))
        return
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
