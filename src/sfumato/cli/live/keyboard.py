"""Keeping the keyboard off the canvas: what is typed while it settles is neither shown nor lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """While inside, the terminal of stdin does not echo, and Ctrl-C throws no output away.

    An echoed key would stand in the middle of the canvas. A terminal also drops what it has not
    shown yet when Ctrl-C is typed, and with it the marks that say where the canvas begins. Does
    nothing without a terminal, or where this program does not hold it.
    """
    descriptor = _held_terminal()
    if descriptor is None:
        yield
        return
    import termios

    before = termios.tcgetattr(descriptor)
    quiet = list(before)
    quiet[3] = (before[3] & ~termios.ECHO) | termios.NOFLSH
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _held_terminal() -> int | None:
    """The descriptor of stdin if it is a terminal and this program in its foreground.

    A program in the background that changes its terminal is stopped by the system.
    """
    if os.name != "posix" or not sys.stdin.isatty():
        return None
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except OSError:
        return None  # no controlling terminal: nothing is typed here


class Interrupts:
    """Ctrl-C between two frames and never within one. Use as a context.

    An interrupt in the middle of a frame would leave the screen and the record of what stands on
    it apart: the next frame would be drawn in the wrong place.
    """

    def __init__(self) -> None:
        self._holding = False
        self._asked = False
        self._before: Callable[[int, FrameType | None], Any] | int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While inside, an interrupt waits; it comes at the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            self._asked = False
            self._pass_on(signal.SIGINT, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._asked = True
        else:
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self._before):
            self._before(number, frame)  # Python's own raises KeyboardInterrupt
