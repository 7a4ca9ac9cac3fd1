"""What the page tells a newcomer is true: sizes, words, and examples that draw."""

from pathlib import Path

import pytest

from recipes.cologen.app.about import about, first_try, words
from recipes.cologen.app.answers import Answers, Request
from recipes.cologen.app.limits import Limits
from recipes.cologen.config.run import RunConfig, parse_config
from recipes.cologen.data.views import VIEWS
from recipes.cologen.data.vocabulary import PRETRAINING_VERBS, SPARE_WORDS, VOCABULARY
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import FULL_POOL
from recipes.cologen.runs.reader import RunReader


@pytest.fixture(scope="module")
def answers(finished_run: Path) -> Answers:
    return Answers(GenerationSession(RunReader(finished_run)), Limits())


def of_photos(size: list[int] | None) -> RunConfig:
    """The settings of a run over a folder of pictures."""
    data = {"source": "folder:photos", "size": size}
    return parse_config({"name": "a*b", "base": {"path": "base"}, "data": data, "stages": {"editing": {}}})


@pytest.mark.parametrize("task", VIEWS)
def test_the_example_of_a_task_draws_at_once(answers: Answers, task: str) -> None:
    example = first_try(answers.session.settings, task)
    assert example is not None and set(example.prompt.split()) <= set(VOCABULARY)
    answer = answers.generate(Request(task, example.image, None, example.prompt, 0, 1, None, FULL_POOL))
    assert answer.picture.shape == (256, 256, 3) and answer.notes == ""


def test_the_words_are_those_of_the_world_but_for_pretraining_s_own(answers: Answers) -> None:
    said = {word for some in words(answers.session.settings).values() for one in some for word in one.split()}
    assert said == set(VOCABULARY) - set(PRETRAINING_VERBS) - set(SPARE_WORDS)


@pytest.mark.parametrize(
    ("size", "said"),
    [([32, 48], "generated at 48x32 pixels"), (None, "at the size of the one that you give")],
)
def test_a_run_of_photos_says_its_size_and_offers_no_toy(size: list[int] | None, said: str) -> None:
    settings = of_photos(size)
    assert said in about(settings) and "toy" not in about(settings)
    assert words(settings) == {} and first_try(settings, "editing") is None
