"""Signals become a wish, a second Ctrl-C does not wait, and the handlers are given back."""

import signal
import threading

import pytest
from accelerate import Accelerator

from recipes.cologen.runs.interruption import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_wish_to_stop(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.agreed(Accelerator())
        signal.raise_signal(number)
        assert stop.agreed(Accelerator())
    assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_termination_waits_however_often_it_is_asked():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested


def test_outside_the_main_thread_nothing_is_taken_over():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopSignals() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
