"""Wording: articles tell the new from what is there, dialects share words, sprinkled words mean nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.cologen.data.scene import Scene, SceneObject
from recipes.cologen.data.vocabulary import SPARE_WORDS
from recipes.cologen.tools.pretraining.wording import (
    DIALECT_TASKS,
    DIALECTS,
    Wording,
    dialect_word,
    instruction,
    sprinkle,
)

seeds = st.integers(0, 2**40)
CIRCLE = SceneObject("circle", "small", "red", "top left")
SQUARE = SceneObject("square", "large", "blue", "bottom right")


def test_a_sentence_says_a_for_the_new_and_the_for_what_is_there() -> None:
    terse, sentence = Wording(sentences=False), Wording(sentences=True)
    scene = Scene("gray", (CIRCLE, SQUARE))
    assert terse.new_at(CIRCLE) == "small red circle top left"
    assert sentence.new_at(CIRCLE) == "a small red circle at the top left"
    assert (terse.there("circle"), sentence.there("circle")) == ("circle", "the circle")
    assert terse.caption(scene, [False, False]) == scene.caption
    assert sentence.caption(scene, [True, False]) == (
        "a small red circle at the top left and a blue square at the bottom right on gray"
    )


def test_every_task_has_words_in_several_dialects_and_most_words_several_meanings() -> None:
    meanings = [(word, task) for dialect in DIALECTS for word, task in dialect.items()]
    tasks = Counter(task for _, task in meanings)
    assert set(tasks) == set(DIALECT_TASKS) and min(tasks.values()) >= 4
    of_word = {word: {task for other, task in meanings if other == word} for word, _ in meanings}
    assert set(of_word) <= set(SPARE_WORDS)
    assert np.mean([len(tasks) > 1 for tasks in of_word.values()]) > 0.8, "a word alone would tell the task"


@pytest.mark.parametrize("task", DIALECT_TASKS)
def test_a_dialects_word_means_the_task_that_was_asked_for(task: str) -> None:
    rng = np.random.default_rng(0)
    found = {dialect_word(rng, task) for _ in range(100)}
    assert len(found) >= 4
    assert all(DIALECTS[dialect][word] == task for dialect, word in found)


@given(seeds, st.sampled_from(["", "the circle in blue", "a red _ at the circle", "the _ to gray"]))
def test_an_instruction_has_its_verb_once_and_fills_its_slot(seed: int, arguments: str) -> None:
    words = instruction(np.random.default_rng(seed), "dye", arguments, 2).split()
    assert words.count("dye") == 1
    assert "_" not in words
    kept = iter(words)
    assert all(word in kept for word in arguments.split() if word != "_")
    assert not set(words) & set(DIALECTS[2])


@given(seeds, st.sampled_from([None, *range(len(DIALECTS))]))
def test_sprinkling_only_adds_words_without_meaning(seed: int, dialect: int | None) -> None:
    prompt = "swap circle small cyan square"
    words = sprinkle(np.random.default_rng(seed), prompt, dialect).split()
    kept = iter(words)
    assert all(word in kept for word in prompt.split())
    added = Counter(words) - Counter(prompt.split())
    assert set(added) <= set(SPARE_WORDS) - set({} if dialect is None else DIALECTS[dialect])
