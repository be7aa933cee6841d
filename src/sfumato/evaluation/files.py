"""Reports appear under their names whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sfumato.errors import EvaluationError


def check_target(path: str | Path) -> Path:
    """`path` if a file can go there. Raises EvaluationError now rather than after an hour."""
    path = Path(path)
    if path.is_dir():
        raise EvaluationError(f"{path} is a folder", hint="name a file in it")
    if path.exists() and not path.is_file():  # a device's name would be taken from it
        raise EvaluationError(f"{path} is not a regular file", hint="name another file")
    if not path.parent.is_dir():
        raise EvaluationError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EvaluationError(f"{path} cannot be written: {path.parent} lets nothing be written")
    return path


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a file beside `path`, then give it that name.

    Raises EvaluationError if the disk refuses; what was at `path` is then still there.
    """
    path = check_target(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # mkstemp's files are for their owner alone
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as problem:
        reason = problem.strerror or problem
        raise EvaluationError(f"{path} cannot be written: {reason}") from problem
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` in UTF-8; see `write_whole`."""
    return write_whole(path, lambda file: file.write(text.encode("utf-8")))
