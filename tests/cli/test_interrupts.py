"""Ctrl-C while libraries load, when a KeyboardInterrupt would be lost or shown as a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

from sfumato.cli.interrupts import INTERRUPTED, leaving_at_once


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_import_that_swallows_interrupts_is_left_all_the_same() -> None:
    done = python(
        "import signal\n"
        "from sfumato.cli.interrupts import leaving_at_once\n"
        "with leaving_at_once():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException: pass\n"
        "print('swallowed')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_the_program_itself_loads_under_it() -> None:
    """The stand-in for typer is interrupted in the middle of its import."""
    done = python(
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from sfumato.cli import main\n"
        "main(['--version'])\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_afterwards_it_is_an_exception_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with leaving_at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_others_handlers_and_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with leaving_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    found: list[object] = []

    def look() -> None:
        with leaving_at_once():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
