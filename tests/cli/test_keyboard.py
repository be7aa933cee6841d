"""The keyboard while the canvas settles: no echo, interrupts between frames, all put back."""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.cli.live.keyboard import Interrupts, quiet_keyboard


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal on stdin that this process holds; its descriptor."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: os.getpgrp())
        yield theirs
    os.close(ours)


def flags(descriptor: int) -> int:
    value = termios.tcgetattr(descriptor)[3]
    assert isinstance(value, int)
    return value


def test_the_terminal_is_quiet_inside_and_itself_again_outside(typed: int) -> None:
    before = termios.tcgetattr(typed)
    assert flags(typed) & termios.ECHO
    with quiet_keyboard():
        assert not flags(typed) & termios.ECHO
        assert flags(typed) & termios.NOFLSH
    assert termios.tcgetattr(typed) == before


def failing() -> None:
    with quiet_keyboard():
        raise KeyboardInterrupt


def test_it_is_put_back_after_an_interrupt(typed: int) -> None:
    before = termios.tcgetattr(typed)
    with pytest.raises(KeyboardInterrupt):
        failing()
    assert termios.tcgetattr(typed) == before


def test_a_program_in_the_background_leaves_it_alone(
    typed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: os.getpgrp() + 1)
    with quiet_keyboard():
        assert flags(typed) & termios.ECHO


def test_a_terminal_that_is_not_ours_is_left_alone(
    typed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "tcgetpgrp", refuse)
    with quiet_keyboard():
        assert flags(typed) & termios.ECHO


def test_without_a_terminal_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        before = signal.getsignal(signal.SIGINT)
        with quiet_keyboard():
            assert not nothing.closed
        assert signal.getsignal(signal.SIGINT) is before


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_frame() -> None:
    drawn: list[int] = []

    def draw() -> None:
        with Interrupts() as interrupts, interrupts.held():
            drawn.append(1)
            interrupt()
            drawn.append(2)

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert drawn == [1, 2]


def test_an_interrupt_between_frames_comes_at_once() -> None:
    drawn: list[int] = []

    def draw() -> None:
        with Interrupts():
            interrupt()
            drawn.append(1)

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert drawn == []


def test_the_handler_before_is_put_back_and_called() -> None:
    called: list[int] = []
    ours = signal.signal(signal.SIGINT, lambda number, _frame: called.append(number))
    try:
        handler = signal.getsignal(signal.SIGINT)
        with Interrupts() as interrupts:
            interrupt()
            with interrupts.held():
                interrupt()
        assert called == [signal.SIGINT, signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, ours)


def test_a_thread_has_no_signals_to_hold() -> None:
    seen: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts, interrupts.held():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
