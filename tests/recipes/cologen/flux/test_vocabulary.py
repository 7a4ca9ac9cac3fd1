"""Closed vocabularies: every word one token, every other word found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.errors import VocabularyError
from recipes.cologen.flux.vocabulary import build_tokenizers, unknown_words

letters = st.text("abcde", min_size=1, max_size=6)
vocabularies = st.lists(letters | st.sampled_from([",", ".", "2", "7"]), min_size=1, max_size=12)


@given(words=vocabularies)
def test_every_word_is_one_token_of_its_own_in_both_tokenizers(words: list[str]) -> None:
    for tokenizer in build_tokenizers(words, 20):
        ids = tokenizer(sorted(set(words)), add_special_tokens=False).input_ids
        assert all(len(word) == 1 for word in ids)
        assert len({word[0] for word in ids}) == len(set(words))
    clip, t5 = build_tokenizers(words, 20)
    prompt = " ".join(words)
    assert len(clip(prompt).input_ids) == len(words) + 2
    assert len(t5(prompt).input_ids) == len(words) + 1
    assert clip.decode(clip(prompt).input_ids, skip_special_tokens=True).split() == words
    assert t5.decode(t5(prompt).input_ids, skip_special_tokens=True).split() == words


def test_words_out_of_the_vocabulary_are_found() -> None:
    _, t5 = build_tokenizers(["red", "blue", ",", "e"], 20)
    assert unknown_words(t5, "red, blue") == ()
    assert unknown_words(t5, "redd Red blue purple e") == ("redd", "Red", "purple")


@pytest.mark.parametrize("word", ["Red", "two words", "x-ray", "12", "r2"])
def test_a_word_that_cannot_be_one_token_is_named(word: str) -> None:
    with pytest.raises(VocabularyError, match=f"{word!r} (?s:.*)not one token of its own"):
        build_tokenizers(["red", word], 20)


def test_saved_tokenizers_come_back_the_same(tmp_path: Path) -> None:
    for tokenizer in build_tokenizers(["red", "green", "redder", ",", "2"], 20):
        folder = tmp_path / type(tokenizer).__name__
        tokenizer.save_pretrained(folder)
        again = type(tokenizer).from_pretrained(folder)
        prompts = ["red, 2", "redder green", "grey"]
        arguments = {"padding": "max_length", "truncation": True}
        assert again(prompts, **arguments).input_ids == tokenizer(prompts, **arguments).input_ids
        assert again.model_max_length == tokenizer.model_max_length


def test_both_tokenizers_hold_the_same_number_of_words() -> None:
    clip, t5 = build_tokenizers(["red"], 5)
    lengths = [len(tokenizer("red " * 9, truncation=True).input_ids) for tokenizer in (clip, t5)]
    assert lengths == [2 + 4, 4 + 1]
