"""What a model or a file wrote: harmless on a terminal, untouched in a pipe, escaped in JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sfumato.cli import terminal
from sfumato.cli.dialogue import Dialogue, Reply
from sfumato.cli.failures import run
from sfumato.cli.program import app
from sfumato.text.thoughts import Parsed
from tests.cli.checkpoints import FakeStdin

HOSTILE = "a\x1b]0;title\x07b\rc\x9b2Jd\u202ee\x00f\tg\nh"
HARMLESS = "a]0;titlebc2Jdef    g\nh"


class Screen(io.StringIO):
    """A stdout that calls itself a terminal, or does not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is the hostile one."""
    reply = Reply(Parsed(answer=HOSTILE), 1, 1, 1, 1.0, 0.1, finished=True)
    monkeypatch.setattr(Dialogue, "reply", lambda *_, **__: reply)


def shown(
    monkeypatch: pytest.MonkeyPatch, *arguments: Any, on_terminal: bool, said: str = ""
) -> str:
    screen = Screen(on_terminal)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stdin", FakeStdin(said.encode()))
    assert run(app, [str(one) for one in arguments]) == 0
    return screen.getvalue()


@pytest.mark.usefixtures("hostile")
def test_an_answer(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    command = ("ask", "-m", tiny, "--no-live", "hi")
    assert shown(monkeypatch, *command, on_terminal=True) == HARMLESS + "\n"
    assert shown(monkeypatch, *command, on_terminal=False) == HOSTILE + "\n"


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("on_terminal", [True, False])
def test_json_escapes_whatever_it_is(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, on_terminal: bool
) -> None:
    told = shown(monkeypatch, "ask", "-m", tiny, "--json", "hi", on_terminal=on_terminal)
    assert told == terminal.printable(told)
    assert json.loads(told)["text"] == HOSTILE


@pytest.mark.usefixtures("hostile")
def test_a_conversation(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    piped = shown(monkeypatch, "chat", "-m", tiny, on_terminal=False, said="hi\n")
    assert piped == HOSTILE + "\n"
    seen = shown(monkeypatch, "chat", "-m", tiny, on_terminal=True, said="hi\n")
    assert seen.startswith(HARMLESS + "\n")
    assert seen.isascii()
    assert "\r" not in seen


def test_names_of_tasks_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"task": HOSTILE, "prompt": "a", "answer": "b"}))
    command = ("eval", tiny, "--file", path, "--steps", "1")
    told = shown(monkeypatch, *command, on_terminal=True)
    assert "title" in told
    assert told == terminal.printable(told)
    told = shown(monkeypatch, *command, "--json", on_terminal=False)
    assert told == terminal.printable(told)
    assert json.loads(told)["results"][0]["task"] == HOSTILE


def test_tables_and_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr("sys.stdout", screen)
    terminal.print_pairs([("name", "a\x1b[2Jb")])
    terminal.print_table(("HEAD",), [("c\x07d",)])
    assert screen.getvalue() == "name  a[2Jb\nHEAD\ncd\n"


def test_a_terminal_of_no_width_is_taken_for_a_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert terminal.output_console().width == terminal.USUAL_COLUMNS
    monkeypatch.setenv("COLUMNS", "33")
    assert terminal.output_console().width == 33


def test_a_surrogate_is_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"folder": "/x\udcff"})
    told = capsys.readouterr().out
    told.encode("utf-8")
    assert json.loads(told) == {"folder": "/x\udcff"}
