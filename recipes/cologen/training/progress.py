"""Shows how far training is: bars in a terminal, a line every so often elsewhere, nothing on other ranks."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from recipes.cologen.training.step import StepLosses

FIRST_SECONDS = 2.0
"""How soon lines first say how long the run will take."""
ROUGH_SECONDS = 60.0
"""An estimate from less than this is called one of the first steps."""


class Clock:
    """Estimates the time left of all stages from the steps made since it was started."""

    def __init__(self, steps_left: int) -> None:
        """Start with so many steps to go."""
        self._left, self._made, self._since = steps_left, 0, time.monotonic()

    def tick(self) -> None:
        """Count one step; the first one also warms up, so time is taken from its end."""
        self._left -= 1
        if self._made == 0:
            self._since = time.monotonic()
        self._made += 1

    @property
    def knows(self) -> bool:
        """Whether a step was measured."""
        return self._made > 1

    def time_left(self) -> str:
        """Time left as a phrase; validation and saving are in it as far as they happened already.

        At first neither did, and later stages have more experts: then it is said to be rough.
        """
        if not self.knows:
            return "time left: ?"
        seconds = time.monotonic() - self._since
        left = duration(seconds / (self._made - 1) * self._left)
        if seconds < ROUGH_SECONDS and self._left:
            return f"about {left} left by the first {self._made} steps"
        return f"{left} left"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class ProgressView(Protocol):
    """Where training says how far it is."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def begin(self, stage: str, step: int, steps: int) -> None:
        """A stage starts, or goes on after `step` steps."""

    def step(self, measured: StepLosses | None) -> None:
        """One more step is done, or was skipped (None)."""

    def say(self, text: str) -> None:
        """Show a line of text."""


class Lines:
    """Progress as lines of text, for logs and pipes."""

    def __init__(self, console: Console, steps_left: int, seconds: float) -> None:
        """Say a line every `seconds`, the first one after a few steps."""
        self._console, self._clock, self._seconds = console, Clock(steps_left), seconds
        self._stage, self._step, self._steps, self._said = "", 0, 0, time.monotonic()
        self._next = min(FIRST_SECONDS, seconds)

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to tidy up."""

    def begin(self, stage: str, step: int, steps: int) -> None:
        """Name the stage."""
        self._stage, self._step, self._steps = stage, step, steps
        self.say(f"stage {stage}: {steps} steps" + (f", going on after step {step}" if step else ""))

    def step(self, measured: StepLosses | None) -> None:
        """Count, and say where we are if it is time."""
        self._clock.tick()
        self._step += 1
        if time.monotonic() - self._said < self._next or not self._clock.knows:
            return
        self._next = self._seconds
        self.say(f"{self._stage} {self._step}/{self._steps}  {numbers(measured)}  {self._clock.time_left()}")

    def say(self, text: str) -> None:
        """Write a line."""
        self._said = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """Progress as two bars, this stage and the whole run."""

    def __init__(self, console: Console, steps_left: int, steps_done: int) -> None:
        """Lay out the bars."""
        self._clock = Clock(steps_left)
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._all = self._progress.add_task(
            "all stages", total=steps_left + steps_done, completed=steps_done, note=self._clock.time_left()
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display."""
        self._progress.stop()

    def begin(self, stage: str, step: int, steps: int) -> None:
        """Add the stage's bar; those of finished stages stay."""
        self._stage = self._progress.add_task(stage, total=steps, completed=step, note="")

    def step(self, measured: StepLosses | None) -> None:
        """Move both bars."""
        self._clock.tick()
        if self._stage is not None:
            self._progress.update(self._stage, advance=1, note=numbers(measured))
        self._progress.update(self._all, advance=1, note=self._clock.time_left())

    def say(self, text: str) -> None:
        """Write a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


def numbers(measured: StepLosses | None) -> str:
    """A step's numbers on a line."""
    if measured is None:
        return "step skipped"
    return f"loss {measured.loss:.4f}  share {measured.share:.2f}"


def progress_view(
    console: Console, *, steps_left: int, steps_done: int, plain_seconds: float
) -> ProgressView:
    """Bars where the console is a terminal, lines elsewhere; a quiet console shows nothing."""
    if console.is_terminal and not console.quiet:
        return Bars(console, steps_left, steps_done)
    return Lines(console, steps_left, plain_seconds)
