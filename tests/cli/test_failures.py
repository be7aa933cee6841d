"""Failures: one clear line, the right exit code, never a traceback for what a user can cause."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sfumato.cli import failures
from sfumato.errors import CheckpointError, InputError


def failing(error: BaseException) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def command() -> None:
        raise error

    return app


def full(filename: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", filename)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckpointError("cut short", hint="fetch it again"), 1, "sfumato: cut short\n  fetch it"),
        (InputError("bad"), 2, "sfumato: bad\n"),
        (full("/x/y"), 1, "sfumato: /x/y: the disk is full\n  free some space"),
        (full(), 1, "sfumato: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: permission denied"),
        (OSError("odd"), 1, "sfumato: odd"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "not enough"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
        (typer.Exit(3), 3, ""),
        (typer.BadParameter("No such thing."), 2, "No such thing\n  see `sfumato"),
    ],
)
def test_errors_become_lines(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(failing(error), []) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err
    assert bool(told.err) == bool(said)


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_no_bug(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, closed, None)
    assert failures.run(failing(InputError("bad")), []) == 2
    assert failures.run(failing(typer.Exit(0)), []) == 0
    getattr(sys, closed).close()


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        failures.run(failing(RuntimeError("a bug")), [])


def test_names_in_files_do_not_steer_the_terminal() -> None:
    assert failures.one_line("a\nb\x1b[2Jc\u202ed") == "a b\\x1b[2Jc\\x202ed"


def test_a_reader_that_leaves_is_no_failure() -> None:
    code = (
        "import sys, typer; from sfumato.cli import failures\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def command() -> None:\n"
        "    for _ in range(100_000): print('line ' * 20)\n"
        "sys.exit(failures.run(app, []))\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    assert program.wait(timeout=60) == failures.BROKEN_PIPE
    assert program.stderr.read() == ""
    program.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_under_stdout() -> None:
    with Path("/dev/full").open("w") as full_disk:
        done = subprocess.run(
            [sys.executable, "-m", "sfumato.cli", "--version"],
            stdout=full_disk,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("sfumato: the disk is full")
    assert "Traceback" not in done.stderr
