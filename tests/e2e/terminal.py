"""A pseudo-terminal with a screen that can be read: the program as a person sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

from sfumato.cli import main

pyte: Any = pytest.importorskip("pyte")

END_OF_FRAME = b"\x1b[?2026l"  # what the live canvas writes behind each frame
COLOUR = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM", "COLUMNS", "LINES")


class Terminal:
    """Runs `sfumato` on a terminal of its own. Use as a context: the program ends with it."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> None:
        """`fresh` starts a new Python; otherwise the libraries loaded here need not load again."""
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.frames: list[list[str]] = []
        self._fd, terminal = pty.openpty()
        self._set_size(columns, rows)
        inherited = {name: value for name, value in os.environ.items() if name not in COLOUR}
        settings = {
            "TERM": "xterm-256color", "COLORTERM": "truecolor", "SFUMATO_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8",
        }  # fmt: skip
        variables = {**inherited, **settings, **(environment or {})}
        with warnings.catch_warnings():
            # Newer Pythons warn of forks under threads; the child here begins a program of its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._child = os.fork()
        if self._child == 0:
            _become_program(terminal, list(arguments), variables, fresh=fresh)
        os.close(terminal)
        self._code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._code is None:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        os.close(self._fd)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, blank lines left out."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    def send(self, keys: str) -> None:
        """Type."""
        self.send_bytes(keys.encode())

    def send_bytes(self, data: bytes) -> None:
        """Type what is no text, perhaps."""
        os.write(self._fd, data)

    def kill(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        os.kill(self._child, number)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size; the program is told by SIGWINCH, as ever."""
        self._set_size(columns, rows)
        self.screen.resize(rows, columns)

    def until(self, seen: Callable[[str], bool], timeout: float = 60.0) -> str:
        """Read until the screen's text is as wanted."""
        end = time.monotonic() + timeout
        while not seen(self.text):
            if not self._read(end - time.monotonic()):
                pytest.fail(f"not seen in {timeout} s or before the end:\n{self.text}")
        return self.text

    def wait(self, timeout: float = 60.0) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            pass
        while self._code is None:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                pytest.fail(f"still running after {timeout} s:\n{self.text}")
            else:
                time.sleep(0.01)
        return self._code

    def _read(self, timeout: float) -> bool:
        """Take in what there is; false at the end of the program or of the time."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, timeout))
        if not ready:
            return False
        data = b""
        with contextlib.suppress(OSError):  # Linux says EIO where others say end of file
            data = os.read(self._fd, 65536)
        self.raw += data
        *frames, rest = data.split(END_OF_FRAME)
        for part in frames:
            self._stream.feed(part)
            self.frames.append(self.lines)
        self._stream.feed(rest)
        return bool(data)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _become_program(
    terminal: int, arguments: list[str], variables: Mapping[str, str], *, fresh: bool
) -> NoReturn:
    """In the child: be `sfumato` on `terminal`, and end with its exit code."""
    code = 70
    try:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
        for descriptor in range(3):
            os.dup2(terminal, descriptor)
        if fresh:
            command = [sys.executable, "-m", "sfumato.cli", *arguments]
            os.execve(sys.executable, command, dict(variables))
        os.environ.clear()
        os.environ.update(variables)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
