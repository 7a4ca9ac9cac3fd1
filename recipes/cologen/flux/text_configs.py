"""Configs of small CLIP and T5 text encoders, for bases that are made here."""

from __future__ import annotations

from transformers import CLIPTextConfig, PreTrainedTokenizerBase, T5Config


def clip_config(width: int, tokenizer: PreTrainedTokenizerBase) -> CLIPTextConfig:
    """Give the config of a CLIP of one layer that reads as many tokens as its tokenizer makes."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        # The pooled vector is read at the first end mark; its id must not be 2, which CLIP treats specially.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_config(width: int, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """Give the config of a T5 of two layers."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
