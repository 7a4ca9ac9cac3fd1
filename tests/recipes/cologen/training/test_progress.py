"""Progress is bars in a terminal, lines elsewhere, nothing where it is quiet."""

import io

import pytest
from rich.console import Console

from recipes.cologen.training import progress
from recipes.cologen.training.progress import Bars, Clock, Lines, duration, progress_view
from recipes.cologen.training.step import StepLosses

MEASURED = StepLosses(0.25, 0.05, 0.8, 0.6)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2 h 0 min"), (12_000, "3 h 20 min")],
)
def test_durations_read_as_people_say_them(seconds, expected):
    assert duration(seconds) == expected


def test_the_time_left_counts_all_stages(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = Clock(100)
    assert clock.time_left() == "time left: ?"
    now = 50.0
    for _ in range(10):
        clock.tick()
    assert clock.time_left() == "8 min left"


def view(**console):
    stream = io.StringIO()
    made = progress_view(
        Console(file=stream, width=120, **console), steps_left=8, steps_done=2, plain_seconds=0.0
    )
    with made:
        made.begin("control", 2, 10)
        made.step(MEASURED)
        made.say("a [line] said")
    return made, stream.getvalue()


def test_a_pipe_gets_lines():
    made, text = view(force_terminal=False)
    assert isinstance(made, Lines)
    assert "stage control: 10 steps, going on after step 2" in text
    assert "control 3/10  loss 0.3000  share 0.80" in text
    assert "left" in text
    assert "a [line] said" in text
    assert "\x1b" not in text


def test_a_terminal_gets_bars():
    made, text = view(force_terminal=True)
    assert isinstance(made, Bars)
    assert "all stages" in text
    assert "control" in text
    assert "a [line] said" in text


def test_a_quiet_console_gets_nothing():
    assert view(force_terminal=True, quiet=True)[1] == ""


def test_lines_come_no_more_often_than_asked():
    stream = io.StringIO()
    lines = Lines(Console(file=stream), 100, seconds=1e9)
    lines.begin("control", 0, 100)
    for _ in range(50):
        lines.step(MEASURED)
    assert len(stream.getvalue().splitlines()) == 1
