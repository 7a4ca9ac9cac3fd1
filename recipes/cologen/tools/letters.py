"""Tokenizers of the real CLIP and T5 classes that spell any text, letter by letter."""

from __future__ import annotations

import string

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from recipes.cologen.flux.vocabulary import WORD_END


def letter_tokenizers(clip_length: int, t5_length: int) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Make a CLIP tokenizer over single bytes and a T5 tokenizer over single printable ASCII characters.

    Other characters are unknown to T5, as they are to the real one where its vocabulary ends.

    Args:
        clip_length: tokens of a CLIP prompt, start and end mark included.
        t5_length: tokens of a T5 prompt, end mark included.
    """
    letters = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + WORD_END for letter in letters)]
    clip = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=clip_length
    )
    printable = string.ascii_letters + string.digits + string.punctuation
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(piece, -1.0) for piece in ("▁", *printable)]
    return clip, T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=t5_length)
