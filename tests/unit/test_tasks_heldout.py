"""Held-out files: what is written is read again; damaged files are one clear line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sfumato.errors import EvaluationError, InputError
from sfumato.tasks import heldout as heldout_files
from sfumato.tasks.base import Example
from sfumato.tasks.heldout import heldout, read_examples, write_heldout


@pytest.mark.parametrize("name", ["sudoku:10-40", "sudoku:41-50", "dates", "json", "tools"])
def test_files_hold_the_held_out_examples(tmp_path: Path, name: str) -> None:
    path = tmp_path / "set.jsonl"
    write_heldout(path, name, 4, seed=9)
    assert read_examples(path) == heldout(name, 4, 9)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["task", "prompt", "answer", "detail"]] * 4


def test_sets_are_prefixes_of_each_other() -> None:
    assert heldout("units", 5, 1) == heldout("units", 9, 1)[:5]
    assert heldout("units", 5, 1) != heldout("units", 5, 2)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_heldout(path, "dates", 3, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["set.jsonl"]
    assert path.read_text() == "old"


def test_no_examples_is_an_error() -> None:
    with pytest.raises(InputError, match="set of 0 examples"):
        heldout("dates", 0, 1)


def test_one_s_own_file_needs_no_detail_and_may_have_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"task":"dates","prompt":"p","answer":"a"}\n\n', encoding="utf-8")
    assert read_examples(path) == [Example("dates", "p", "a", {})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no example"),
        (b"\n \n", "holds no example"),
        (b"{", "line 1 is not JSON"),
        (b"[1]", "line 1 is not a JSON object"),
        (
            b'{"task":"t","prompt":"p","answer":"a"}\n{"task":"t","prompt":"p"}',
            "line 2 needs a text under 'answer'",
        ),
        (b'{"task":"t","prompt":"","answer":"a"}', "needs a text under 'prompt'"),
        (b'{"task":3,"prompt":"p","answer":"a"}', "needs a text under 'task'"),
        (b'{"task":"t","prompt":"p","answer":"a","note":1}', "unknown field 'note'"),
        (b'{"task":"t","prompt":"p","answer":"a","detail":[]}', "'detail' is not an object"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"task":"t","prompt":"\\ud800","answer":"a"}', "line 1 has half a character"),
        (b" " * 401, "more than the 400 bytes"),
    ],
)
def test_damaged_files_are_named_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(heldout_files, "MAX_BYTES", 400)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_examples(path)
    assert str(path) in caught.value.message


def test_a_missing_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl")


def test_a_line_separator_inside_a_prompt_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    row = {"task": "own", "prompt": "one\u2028two", "answer": "x"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_examples(path)[0].prompt == "one\u2028two"


def test_deep_nesting_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("[" * 100_000 + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 is not JSON"):
        read_examples(path)
