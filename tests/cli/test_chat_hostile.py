"""`sfumato chat` on a terminal against what breaks conversations: nothing is lost, nothing ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.cli import chat as chatting
from sfumato.cli.chat_commands import obey
from sfumato.cli.chat_state import ChatState
from sfumato.cli.dialogue import Dialogue, Reply
from sfumato.cli.options import DecodingOptions, ModelOptions
from sfumato.errors import InputError
from sfumato.text.chat import Conversation, message_from_json
from sfumato.text.thoughts import Parsed
from tests.cli.checkpoints import Program

Typed = str | type[BaseException]
UNREADABLE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.fixture(scope="module")
def dialogue(tiny: Path) -> Iterator[Dialogue]:
    loaded = Dialogue.load(ModelOptions(model=str(tiny)))
    yield loaded
    loaded.model.template.close()


@pytest.fixture
def state() -> ChatState:
    return ChatState.begin(DecodingOptions(), system=None, thinking=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to X is "re X", and to "stop" it is interrupted."""

    def reply(_: Dialogue, conversation: Conversation, *__: object) -> Reply:
        said = conversation.messages[-1].content
        if said == "stop":
            raise KeyboardInterrupt
        if said == "fail":
            raise InputError("it cannot be answered")
        return Reply(Parsed(answer=f"re {said}"), 1, 1, 1, 1.0, 0.1, finished=True)

    monkeypatch.setattr(Dialogue, "reply", reply)


def talk(
    monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, state: ChatState, *typed: Typed
) -> list[object]:
    """What has been said once all of it was typed, and the input ended."""
    lines = iter([*typed, EOFError])

    def read(_prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise UNREADABLE if line is UnicodeDecodeError else line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    chatting._talk(dialogue, state, live=False)
    assert next(lines, None) is None, "it ended before the input did"
    return [message.content for message in state.conversation.messages]


BOTH = ["one", "re one", "two", "re two"]


@pytest.mark.parametrize(
    "instead",
    [
        (KeyboardInterrupt,), ("",), ("   ",), ("stop",), ("fail",), (UnicodeDecodeError,),
        ("/set",), ("/hlep",), ("/edit", KeyboardInterrupt), ("three\\", KeyboardInterrupt), (),
    ],
)  # fmt: skip
def test_an_edit_that_comes_to_nothing_loses_no_turn(
    monkeypatch: pytest.MonkeyPatch,
    dialogue: Dialogue,
    state: ChatState,
    instead: tuple[Typed, ...],
) -> None:
    said = talk(monkeypatch, dialogue, state, "one", "two", "/edit", *instead)
    if instead:
        assert said == BOTH
    else:  # the program ended while it was edited
        assert said == BOTH[:2]


def test_an_edit_that_is_answered_takes_the_turns_place(
    monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, state: ChatState
) -> None:
    said = talk(monkeypatch, dialogue, state, "one", "two", "/edit", "three", "", KeyboardInterrupt)
    assert said == ["one", "re one", "three", "re three"]
    assert talk(monkeypatch, dialogue, state, "/edit four")[-2:] == ["four", "re four"]
    assert talk(monkeypatch, dialogue, state, "/edit fail")[-2:] == ["four", "re four"]
    assert talk(monkeypatch, dialogue, state, "/edit", "/undo") == ["one", "re one"]


def test_the_end_of_input_ends_a_message_that_was_begun(
    monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, state: ChatState
) -> None:
    said = talk(monkeypatch, dialogue, state, "one\\", "two\\", EOFError)
    assert said[:1] == ["one\ntwo"]


@pytest.mark.parametrize(
    "line",
    [
        "/save " + "x" * 5000, "/save " + "x" * 254, "/load " + "x" * 5000, "/image " + "x" * 5000,
        "/" + "x" * 100_000, "/set " + "x" * 100_000, "/load /dev/zero", "/load ..", "/save .",
        "/system \udcff", "a\x1b[2J\0", "/save \udcff/x", "/\x1b[2J", "\0", "\x1b[2J",
    ],
)  # fmt: skip
def test_no_line_ends_the_conversation_or_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, state: ChatState, line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = talk(monkeypatch, dialogue, state, "one", line, "two")
    assert said[:2] == BOTH[:2]
    assert said[-2:] == BOTH[2:]
    told = capsys.readouterr().err
    assert len(told) < 2000
    assert "\x1b" not in told
    assert "Traceback" not in told


def test_text_that_is_no_utf8_does_not_come_in(
    sfumato: Program, tiny: Path, dialogue: Dialogue, state: ChatState, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no UTF-8 text: its character 2 "):
        message_from_json({"role": "user", "content": "a\ud800"})
    path = tmp_path / "half.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}))
    with pytest.raises(InputError, match="no UTF-8 text"):
        obey(f"/load {path}", state, dialogue)
    assert state.conversation == Conversation()
    assert "--system is no UTF-8" in sfumato.refuses(
        "chat", "-m", tiny, "--system", "\udcff", code=2
    )


def test_a_link_of_ones_own_may_be_loaded(
    monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, state: ChatState, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "talk.json").symlink_to(tmp_path / "kept" / "a.json")
    talk(monkeypatch, dialogue, state, "one", f"/save {tmp_path / 'kept' / 'a.json'}")
    fresh = ChatState.begin(DecodingOptions(), system=None, thinking=False)
    assert talk(monkeypatch, dialogue, fresh, f"/load {tmp_path / 'talk.json'}") == BOTH[:2]
