"""Tokenizers of the real CLIP and T5 classes over a closed vocabulary: every word is exactly one token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import CLIPTokenizer, T5Tokenizer

from recipes.cologen.errors import VocabularyError

WORD_END = "</w>"
"""What CLIP's tokenizer appends to the last piece of a word."""


def build_tokenizers(words: Sequence[str], max_text_tokens: int) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Make a CLIP and a T5 tokenizer that know these words and nothing else.

    Args:
        words: lower-case words, single digits and punctuation marks; order and repetition do not matter.
        max_text_tokens: length of a T5 prompt, end mark included. CLIP, which adds a start mark, gets one
            more, so both hold the same number of words.

    Raises:
        VocabularyError: if a word is not one token in both tokenizers.
    """
    unique = sorted(set(words))
    tokenizers = _clip_tokenizer(unique, max_text_tokens + 1), _t5_tokenizer(unique, max_text_tokens)
    for word in unique:
        for tokenizer in tokenizers:
            ids = tokenizer(word, add_special_tokens=False).input_ids
            known = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
            # CLIP lower-cases by itself, so "Red" would be one token, but that of "red".
            if not known or word != word.lower():
                pieces = tokenizer.convert_ids_to_tokens(ids)
                raise VocabularyError(
                    f"{word!r} is {pieces} to {type(tokenizer).__name__}, not one token of its own. Words "
                    "must be lower-case letters only, a single digit, or punctuation."
                )
    return tokenizers


def unknown_words(tokenizer_2: T5Tokenizer, prompt: str) -> tuple[str, ...]:
    """List the words of a prompt that a closed T5 vocabulary does not hold, in their order."""
    unknown = tokenizer_2.unk_token_id
    return tuple(
        word for word in prompt.split() if unknown in tokenizer_2(word, add_special_tokens=False).input_ids
    )


def _t5_tokenizer(words: list[str], length: int) -> T5Tokenizer:
    marks = [word for word in words if not word.isalnum()]
    # A mark that follows a word directly ("red,") is a piece of its own, without the sign of a word's start.
    pieces = [f"▁{word}" for word in words] + marks
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(piece, -1.0) for piece in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def _clip_tokenizer(words: list[str], length: int) -> CLIPTokenizer:
    vocabulary, merges = _byte_pairs(words)
    # Merges are taken as pairs, whatever the annotation says.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]


def _byte_pairs(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Find merges under which every word becomes one piece.

    Words are added one by one: each is split by the merges so far, and its first two pieces get a new merge
    until one is left. A new merge ranks below all others, so it never changes how an earlier word is put
    together.
    """
    pieces = sorted({piece for word in words for piece in _letters(word)})
    vocabulary = {piece: i for i, piece in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])}
    merges: list[tuple[str, str]] = []
    for word in words:
        while len(parts := _split(word, vocabulary, merges)) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.setdefault(parts[0] + parts[1], len(vocabulary))
    return vocabulary, merges


def _letters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + WORD_END]


def _split(word: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> list[str]:
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END)
    return [token.value for token in Tokenizer(model).model.tokenize(word)]
