"""How pretraining words what it asks for: tersely or in sentences, in its own verbs or in dialects.

In a sentence `a ...` is something new and `the ...` something that is there. A *dialect* is a set of spare
words that stand for tasks. Which one is spoken is never said in the prompt: the base is told by offsets on
the source's keys and values (dialects.py), where a stage's expert will tell it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recipes.cologen.data.scene import Scene, SceneObject
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, SPARE_WORDS
from recipes.cologen.data.world import pick

SLOT = "_"
"""Where arguments leave room for a second word of the instruction, as `a red _ at the circle` does."""
SPRINKLED_SHARE = 0.3
"""Share of the prompts that get meaningless words sprinkled in."""
DIALECT_TASKS = ("frame", "dye", "keep", "drop", "put", "plus", "swap", "bring", "backdrop", "trace")
"""What the words of dialects stand for."""
_ROUNDS = 4
_WORDS_A_DIALECT = 5


def _deal_dialects() -> tuple[dict[str, str], ...]:
    """Deal all tasks to two dialects at a time, each to a word drawn for it; always the same."""
    rng = np.random.default_rng(0)
    dialects = []
    for _ in range(_ROUNDS):
        tasks = rng.permutation(DIALECT_TASKS)
        for first in range(0, len(tasks), _WORDS_A_DIALECT):
            words = rng.permutation(SPARE_WORDS)[:_WORDS_A_DIALECT]
            dialects.append(dict(zip(map(str, words), map(str, tasks[first:]), strict=False)))
    return tuple(dialects)


DIALECTS: tuple[dict[str, str], ...] = _deal_dialects()
"""The meaning of each dialect's words: another task, or none, in every dialect."""


def dialect_word(rng: np.random.Generator, task: str) -> tuple[int, str]:
    """A dialect that has a word for the task, and that word."""
    words = [(i, word) for i, words in enumerate(DIALECTS) for word, meant in words.items() if meant == task]
    return words[int(rng.integers(len(words)))]


@dataclass(frozen=True)
class Wording:
    """One way to word arguments: `circle blue`, or `the circle in blue`."""

    sentences: bool

    def there(self, reference: str) -> str:
        """Something that the picture shows: `the circle`."""
        return f"the {reference}" if self.sentences else reference

    def at(self, place: str, preposition: str = "at") -> str:
        """A place: `at the top left`."""
        return f"{preposition} the {place}" if self.sentences else place

    def new(self, item: SceneObject) -> str:
        """Something that the picture does not show yet, without its place: `a small red circle`."""
        return f"a {item.size} {item.name}" if self.sentences else f"{item.size} {item.name}"

    def new_at(self, item: SceneObject) -> str:
        """The same with its place: `a small red circle at the top left`."""
        return f"{self.new(item)} {self.at(item.place)}"

    def caption(self, scene: Scene, sized: list[bool]) -> str:
        """A caption that gives the size of some of the objects."""
        if not self.sentences:
            return scene.described(sized)
        phrases = (
            f"a {item.size} {item.name} at the {item.place}" if tell else f"a {item.name} at the {item.place}"
            for item, tell in zip(scene.objects, sized, strict=True)
        )
        return " and ".join(phrases) + f" on {scene.background}"


def random_wording(rng: np.random.Generator) -> Wording:
    """Terse or in sentences, each half of the time."""
    return Wording(bool(rng.random() < 0.5))


def meaningless_word(rng: np.random.Generator, dialect: int | None) -> str:
    """A spare word that the dialect, if one is spoken, has no meaning for."""
    meant = {} if dialect is None else DIALECTS[dialect]
    return pick(rng, [word for word in SPARE_WORDS if word not in meant])


def instruction(rng: np.random.Generator, verb: str, arguments: str, dialect: int | None = None) -> str:
    """Put the verb before its arguments, or sometimes into their slot; another word fills what is left."""
    first, second = verb, ""
    if SLOT in arguments.split():
        if rng.random() < 0.5:
            second = meaningless_word(rng, dialect)
        if rng.random() < 0.3:
            first, second = second, first
    words = [second if word == SLOT else word for word in f"{first} {arguments}".split()]
    return " ".join(word for word in words if word)


def sprinkle(rng: np.random.Generator, prompt: str, dialect: int | None = None) -> str:
    """The prompt, sometimes with meaningless words at random places; never longer than the encoders read."""
    words = prompt.split()
    room = MAX_TEXT_TOKENS - 1 - len(words)
    if room > 0 and rng.random() < SPRINKLED_SHARE:
        for _ in range(1 + int(rng.integers(min(4, room)))):
            words.insert(int(rng.integers(len(words) + 1)), meaningless_word(rng, dialect))
    return " ".join(words)
