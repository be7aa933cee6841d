"""Ctrl-C while libraries load: the program leaves at once and says nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # what shells call the end by SIGINT


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """While inside, Ctrl-C ends the program there and then.

    For imports: a KeyboardInterrupt in the middle of one is swallowed by some libraries and makes
    others fail later. There is nothing to tidy up yet.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_at_once() -> None:
    """From here on Ctrl-C ends the program there and then: all is told, what is left is the exit.

    A second one would otherwise come out of the interpreter's own end as a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
