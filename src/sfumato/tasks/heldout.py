"""Held-out sets as files: JSON lines {"task", "prompt", "answer", "detail"}."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.errors import EvaluationError, InputError
from sfumato.tasks.base import Example
from sfumato.tasks.registry import task

MAX_BYTES = 256 * 1024 * 1024  # of a file of examples, which is held in memory


def heldout(name: str, n: int, seed: int) -> list[Example]:
    """The first `n` held-out examples of a task (`sudoku:10-40`, `dates`, ...)."""
    if n < 1:
        raise InputError(
            f"a held-out set of {n} examples cannot be written", hint="ask for 1 or more"
        )
    source = task(name)
    return [source.example(seed, index, "heldout") for index in range(n)]


def write_heldout(path: str | Path, task: str, n: int, seed: int) -> None:
    """Write `heldout(task, n, seed)`; the file appears whole or not at all."""
    path = Path(path)
    examples = heldout(task, n, seed)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for e in examples:
                row = {"task": e.task, "prompt": e.prompt, "answer": e.answer, "detail": e.detail}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_examples(path: str | Path) -> list[Example]:
    """Read such a file, one's own included; `detail` may be absent. Errors name the line."""
    examples = [_parsed(row, where) for row, where in _rows(Path(path))]
    if not examples:
        raise EvaluationError(f"{path} holds no example")
    return examples


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of such a file, in which all other fields may be absent. Errors name the line."""
    prompts = [_text(row, "prompt", where) for row, where in _rows(Path(path))]
    if not prompts:
        raise EvaluationError(f"{path} holds no prompt")
    return prompts


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file, and where each stands."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise EvaluationError(f"{path} has more than the {MAX_BYTES:,} bytes that are read")
        # Not splitlines: U+2028 and its like may stand inside a prompt.
        lines = data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(line, where), where


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise EvaluationError(f"{where} is not a JSON object")
    if unknown := sorted(set(row) - {"task", "prompt", "answer", "detail"}):
        raise EvaluationError(f"{where} has an unknown field {unknown[0]!r}")
    return row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text:
        raise EvaluationError(f"{where} needs a text under {key!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise EvaluationError(f"{where} has half a character (a surrogate) under {key!r}")
    return text


def _parsed(row: dict[str, Any], where: str) -> Example:
    task, prompt, answer = (_text(row, key, where) for key in ("task", "prompt", "answer"))
    detail = row.get("detail", {})
    if not isinstance(detail, dict):
        raise EvaluationError(f"{where}: 'detail' is not an object")
    return Example(task, prompt, answer, detail)
