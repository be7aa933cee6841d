"""Failures: one clear line, the right exit code, never a traceback for what a user can cause."""

from __future__ import annotations

import errno
import io
import signal
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_lets_it_tidy_up(number: signal.Signals) -> None:
    tidied: list[bool] = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            tidied.append(True)

    with pytest.raises(SystemExit) as left:
        failures.run(app, [])
    assert left.value.code == 128 + number
    assert tidied == [True]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    app = typer.Typer(rich_markup_mode=None)
    app.command()(lambda: signal.raise_signal(signal.SIGHUP))
    try:
        assert failures.run(app, []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "h\u00e9 \u6771", b"h\\xe9 \\u6771"),
        ("latin-1", "h\u00e9 \u6771", b"h\xe9 \\u6771"),
        ("utf-8", "h\u00e9", b"h\xc3\xa9"),
        ("utf-8", "name \udcff", b"name \xff"),
        ("utf-8", "half \ud800", b"half \\ud800"),
    ],
)
def test_what_the_encoding_lacks_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, written: bytes
) -> None:
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    app = typer.Typer(rich_markup_mode=None)
    app.command()(lambda: print(text))
    assert failures.run(app, []) == 0
    assert raw.getvalue() == written + b"\n"


def test_on_a_terminal_it_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escape is longer than what the live canvas counts, and would break its lines."""
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    app = typer.Typer(rich_markup_mode=None)
    app.command()(lambda: print("h\u00e9"))
    assert failures.run(app, []) == 0
    assert raw.getvalue() == b"h?\n"


def test_names_in_files_do_not_steer_the_terminal() -> None:
    assert failures.one_line("a\nb\x1b[2Jc\u202ed") == "a b\\x1b[2Jc\\x202ed"


def test_a_line_has_an_end() -> None:
    told = failures.one_line("no task " + "x" * 100_000 + " here")
    assert told.startswith("no task x")
    assert told.endswith("x here")
    assert " ... " in told
    assert len(told) < 1100


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
