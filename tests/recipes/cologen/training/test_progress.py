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
    clock = Clock(101)
    assert clock.time_left() == "time left: ?"
    now = 30.0  # the first step also loads and compiles
    clock.tick()
    assert clock.time_left() == "time left: ?"
    now = 34.0
    clock.tick()
    assert clock.time_left() == "about 7 min left by the first 2 steps"
    now = 90.0
    for _ in range(9):
        clock.tick()
    assert clock.time_left() == "9 min left"


def test_a_pipe_hears_of_the_time_left_in_the_first_seconds_and_then_seldom(monkeypatch):
    now, stream = 0.0, io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = Lines(Console(file=stream, width=120), 5000, seconds=15.0)
    lines.begin("inpainting", 0, 250)
    for _ in range(100):  # 25 seconds
        now += 0.25
        lines.step(MEASURED)
    said = stream.getvalue().splitlines()
    assert said[1] == "inpainting 8/250  loss 0.3000  share 0.80  about 21 min left by the first 8 steps"
    assert [line.split()[1] for line in said[2:]] == ["68/250"]


def test_a_terminal_shows_the_time_left_after_two_steps():
    stream = io.StringIO()
    bars = Bars(Console(file=stream, width=140, force_terminal=True), 5000, 0)
    with bars:
        bars.begin("inpainting", 0, 250)
        bars.step(MEASURED)
        bars.step(MEASURED)
    assert "left by the first 2 steps" in stream.getvalue()


def view(**console):
    stream = io.StringIO()
    made = progress_view(
        Console(file=stream, width=120, **console), steps_left=8, steps_done=2, plain_seconds=0.0
    )
    with made:
        made.begin("control", 2, 10)
        made.step(MEASURED)
        made.step(MEASURED)
        made.say("a [line] said")
    return made, stream.getvalue()


def test_a_pipe_gets_lines():
    made, text = view(force_terminal=False)
    assert isinstance(made, Lines)
    assert "stage control: 10 steps, going on after step 2" in text
    assert "control 4/10  loss 0.3000  share 0.80" in text
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
