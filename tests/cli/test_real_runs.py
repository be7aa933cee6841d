"""The program as a process of its own: interrupts, and what a pipe gets whatever TERM says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sfumato as library
from sfumato.cli.interrupts import INTERRUPTED

PROGRAM = (sys.executable, "-m", "sfumato.cli")
ENDLESS = ("--steps", "1000000", "--stability", "1000000")


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**inherited, "HF_HUB_OFFLINE": "1", "SFUMATO_THREADS": "1", **more}


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(one) for one in path.read_text().split()] if path.exists() else []


def until_it_answers(program: subprocess.Popen[str]) -> list[int]:
    """Wait for the chat template's process: the model is loaded, and denoising comes next."""
    end = time.monotonic() + 300
    while not (found := children(program.pid)):
        assert program.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(1)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a Linux file system")
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_ends_an_answer_in_silence(tiny: Path, times: int) -> None:
    program = subprocess.Popen(
        [*PROGRAM, "ask", "-m", str(tiny), "hi", *ENDLESS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background jobs ignore interrupts, and what they start does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        workers = until_it_answers(program)
        for _ in range(times):
            program.send_signal(signal.SIGINT)
            time.sleep(0.1)
        told = program.communicate(timeout=300)
    finally:
        program.kill()
    # One that comes while the interpreter ends finds no handler: the signal itself ends it.
    assert program.returncode in (INTERRUPTED, -signal.SIGINT)
    assert told == ("", "")
    end = time.monotonic() + 60
    while any(Path(f"/proc/{one}").exists() for one in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{one}").exists() for one in workers)


@pytest.mark.parametrize(
    "settings",
    [{"TERM": "xterm-256color", "FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}],
    ids=["coloured", "dumb", "no_color"],
)
def test_a_pipe_gets_the_text_alone(tiny: Path, settings: dict[str, str]) -> None:
    expected = library.load(tiny).answer("hi")
    assert isinstance(expected, str)
    for command in (("ask", "-m", str(tiny), "hi"), ("chat", "-m", str(tiny))):
        done = subprocess.run(
            [*PROGRAM, *command],
            input="hi\n",
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(**settings),
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, expected.strip("\n") + "\n", "")
