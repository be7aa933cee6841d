"""From errors to one line on stderr, the next step under it, and an exit code."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from sfumato.cli.interrupts import INTERRUPTED
from sfumato.errors import SfumatoError

OK, FAILURE, USAGE, BROKEN_PIPE = 0, 1, 2, 141

# typer runs on click, its own copy or the package, whichever the release carries: its base class
# of parse errors is found through the one name that typer exports.
_ParseError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)
# Signals that end a program at once; here its temporary files go first, and the terminal is put
# back. Windows has the first alone.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_LONGEST_LINE = 1000
_UNWRITABLE = "sfumato.unwritable"
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run `app`; returns the exit code, with the failure already told on stderr."""
    _replace_closed_streams()
    _let_stdout_take_everything()
    try:
        with _ending_tidily():
            code = _call(app, arguments)
            sys.stdout.flush()
    except SfumatoError as error:
        return complain(error.message, error.hint, error.exit_code)
    except _ParseError as error:
        return _complain_of_arguments(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_broken_pipe()
    except SystemExit as left:
        # typer ends the program itself when the reader of a pipe has gone, and says 1.
        if isinstance(left.__context__, BrokenPipeError):
            return _leave_broken_pipe()
        raise
    except OSError as error:
        return _complain_of_system(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        hint = "`sfumato doctor` says what fits this machine; --dtype bfloat16 halves the weights"
        return complain("there is not enough memory for this", hint, FAILURE)
    return code


def _replace_closed_streams() -> None:
    """Python has None in place of a stream that was closed at the start, as by `>&-`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, nowhere)


def _let_stdout_take_everything() -> None:
    """What stdout's encoding lacks does not end the program.

    A pipe gets an escape for it, and the bytes of a file's name that are no text as they were; a
    terminal gets a question mark, which does not move what stands behind it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error(_UNWRITABLE, _written)
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else _UNWRITABLE)


def _written(problem: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(problem)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(problem)


@contextlib.contextmanager
def _ending_tidily() -> Iterator[None]:
    """While inside, a signal that ends the program raises SystemExit with its shell's code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, _end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _call(app: typer.Typer, arguments: list[str]) -> int:
    result: Any = app(arguments, standalone_mode=False, prog_name="sfumato")
    return result if isinstance(result, int) else OK


def complain(message: str, hint: str, code: int) -> int:
    """Write the failure to stderr, one line each; returns `code`."""
    lines = [f"sfumato: {one_line(message)}"]
    if hint:
        lines.append(f"  {one_line(hint)}")
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    return code


def one_line(text: str) -> str:
    """`text` in one line of bounded length, without characters that steer a terminal.

    Names in a hostile file come this way too, and whatever was pasted as a command.
    """
    flat = " ".join(text.split())
    if len(flat) > _LONGEST_LINE:
        half = _LONGEST_LINE // 2
        flat = f"{flat[:half]} ... {flat[-half:]}"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in flat)


def _complain_of_arguments(error: Exception) -> int:
    message = str(getattr(error, "format_message", lambda: str(error))()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "sfumato"
    told = message[:1].lower() + message[1:]
    return complain(told, f"see `{path} --help`", USAGE)


def _leave_broken_pipe() -> int:
    # The reader has gone. What is still buffered must not raise again when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _complain_of_system(error: OSError) -> int:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return complain(
            f"{where}the disk is full", "free some space, or choose another place", FAILURE
        )
    reason = error.strerror or str(error) or type(error).__name__
    return complain(f"{where}{reason[:1].lower()}{reason[1:]}", "", FAILURE)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error).lower() for words in _MEMORY_WORDS)
