"""`sfumato chat`: turns, commands, settings, and what a pipe gets."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfumato as library
from sfumato.cli import chat as chatting
from sfumato.cli.chat_commands import COMMANDS, Outcome, change_setting, obey
from sfumato.cli.chat_state import ChatState
from sfumato.cli.dialogue import Dialogue
from sfumato.cli.options import DecodingOptions, ModelOptions
from sfumato.errors import InputError, SfumatoError, UsageError
from sfumato.text.chat import Conversation, ImagePart, Message
from tests.cli.checkpoints import FakeStdin, Program


@pytest.fixture(scope="module")
def dialogue(tiny: Path) -> Iterator[Dialogue]:
    loaded = Dialogue.load(ModelOptions(model=str(tiny)))
    yield loaded
    loaded.model.template.close()


@pytest.fixture
def state() -> ChatState:
    return ChatState.begin(DecodingOptions(max_new_tokens=8), system=None, thinking=False)


def contents(state: ChatState) -> list[tuple[str, object]]:
    return [(message.role, message.content) for message in state.conversation.messages]


def test_each_line_is_a_message_and_gets_its_answer(sfumato: Program, tiny: Path) -> None:
    model = library.load(tiny)
    first = model.answer("hello", seed=2, max_new_tokens=8)
    assert isinstance(first, str)
    done = sfumato(
        "chat", "-m", tiny, "--seed", "2", "--max-new-tokens", "8", stdin="hello\n\n/exit\nmore\n"
    )
    assert (done.code, done.out, done.err) == (0, first.strip("\n") + "\n", "")


def test_a_second_turn_sees_the_first(sfumato: Program, tiny: Path) -> None:
    both = sfumato("chat", "-m", tiny, "--max-new-tokens", "8", stdin="one\ntwo\n")
    alone = sfumato("chat", "-m", tiny, "--max-new-tokens", "8", stdin="two\n")
    assert both.out.endswith("\n")
    assert not both.out.endswith("\n" + alone.out)


def test_from_a_pipe_an_error_ends_the_chat(sfumato: Program, tiny: Path) -> None:
    done = sfumato("chat", "-m", tiny, stdin="/frobnicate\nhello\n")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("sfumato: there is no command /frobnicate")
    assert sfumato("chat", "-m", tiny, stdin="").code == 0
    sfumato.refuses("chat", "-m", tiny, "--seed", "-1", code=2)
    sfumato.refuses("chat", "-m", tiny, "words", code=2)


@pytest.mark.parametrize(
    ("stdin", "said"),
    [(b"hello\n\xff\n", "line 2 of stdin is no UTF-8 text"),
     (b"hello\n" + b"x" * 11, "line 2 of stdin holds more than the 10 bytes")],
)  # fmt: skip
def test_lines_that_cannot_be_messages(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch, stdin: bytes, said: str
) -> None:
    monkeypatch.setattr(chatting, "MAX_PROMPT_BYTES", 10)
    done = sfumato("chat", "-m", tiny, "--max-new-tokens", "8", stdin=stdin)
    assert done.code == 2
    assert said in done.err
    assert done.out.count("\n") == 1  # the first line has its answer


def test_lines_end_at_the_line_break_alone() -> None:
    lines = io.BytesIO("one\rtwo\x85\u2028three\r\nfour".encode())
    assert list(chatting.piped_lines(lines)) == ["one\rtwo\x85\u2028three", "four"]


def test_thinking_needs_a_template_with_a_switch(
    sfumato: Program, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny, folder)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert "no thinking" in sfumato.refuses("chat", "-m", folder, "--think", code=2)


def test_lines_join_at_a_backslash() -> None:
    lines = iter(["one\\", "two", "three", "four\\"])
    assert list(chatting.joined_lines(lines)) == ["one\ntwo", "three", "four"]


def test_help_lists_every_command(
    dialogue: Dialogue, state: ChatState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert obey("/help", state, dialogue) == Outcome()
    shown = capsys.readouterr().out
    assert all(f"/{name}" in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/hlep", "did you mean /help"),
        ("/qqqq", "/help lists them"),
        ("/", "no command /"),
        ("/think\tmaybe", "on or off"),
        ("/reset now", "/reset takes nothing behind it"),
        ("/exit now", "type /exit alone"),
        ("/seed", "wants a whole number"),
        ("/save a\0b", "no NUL"),
        ("/save /", "/ is a folder"),
        ("/save /dev/null", "/dev/null is not a regular file"),
        ("/load ~no-such-user/x", "no-such-user/x: there is no such file"),
        ("/think", "on or off"),
        ("/set bogus 3", "no setting 'bogus'"),
        ("/set step 3", "did you mean steps"),
        ("/set steps x", "wants a whole number"),
        ("/set steps 0", "max_denoising_steps"),
        ("/set entropy-bound much", "wants a number"),
        ("/set mode sideways", "diffusion or autoregressive"),
        ("/set t-min 5", "t_max must be above t_min"),
        ("/set temperature 1", "--temperature is for --mode autoregressive"),
        ("/seed -1", "--seed must be"),
        ("/seed x", "wants a whole number"),
        ("/edit", "no message to edit"),
        ("/undo", "no turn to take back"),
        ("/image", "wants the path"),
        ("/image x.png", "takes no images"),
        ("/save", "wants a file"),
        ("/load", "wants a file"),
        ("/load /no/such/file", "/no/such/file"),
        ("/save /no/such/folder/file", "/no/such/folder/file"),
    ],
)
def test_what_commands_refuse(dialogue: Dialogue, state: ChatState, line: str, said: str) -> None:
    before = (state.conversation, state.decoding)
    with pytest.raises(SfumatoError) as caught:
        obey(line, state, dialogue)
    assert said in str(caught.value)
    assert (state.conversation, state.decoding) == before


def test_settings_are_shown_and_changed(
    dialogue: Dialogue, state: ChatState, capsys: pytest.CaptureFixture[str]
) -> None:
    obey("/set", state, dialogue)
    assert "steps           4" in capsys.readouterr().out
    obey("/set steps 9", state, dialogue)
    obey("/seed 5", state, dialogue)
    assert (state.decoding.steps, state.decoding.seed) == (9, 5)
    assert "steps           9" in capsys.readouterr().out
    obey("/set steps", state, dialogue)
    assert state.decoding.steps is None
    obey("/set mode autoregressive", state, dialogue)
    obey("/set temperature 0.7", state, dialogue)
    assert state.decoding.temperature == 0.7
    assert "temperature     0.7" in capsys.readouterr().out


def test_settings_keep_their_kinds() -> None:
    decoding = change_setting(DecodingOptions(), "max_new_tokens", "12")
    decoding = change_setting(decoding, "confidence", "0.5")
    assert (decoding.max_new_tokens, decoding.confidence) == (12, 0.5)
    with pytest.raises(UsageError, match="wants a number"):
        change_setting(decoding, "t-max", "warm")


def answered(state: ChatState, text: str, answer: str = "yes") -> None:
    conversation, pictures = state.with_message(text)
    state.last_message = text
    state.take(conversation.reply(answer), pictures)


def test_undo_and_reset(dialogue: Dialogue, state: ChatState) -> None:
    obey("/system Be brief.", state, dialogue)
    answered(state, "one")
    answered(state, "two")
    obey("/undo", state, dialogue)
    assert contents(state) == [("system", "Be brief."), ("user", "one"), ("assistant", "yes")]
    obey("/reset", state, dialogue)
    assert contents(state) == [("system", "Be brief.")]
    obey("/system", state, dialogue)
    assert contents(state) == []


def test_edit_takes_the_last_turn_back_and_asks_again(dialogue: Dialogue, state: ChatState) -> None:
    answered(state, "one")
    answered(state, "tow")
    assert obey("/edit two", state, dialogue) == Outcome(message="two")
    assert contents(state)[-1] == ("assistant", "yes")
    assert len(contents(state)) == 2


def test_edit_types_the_message_in_for_the_user(
    dialogue: Dialogue, state: ChatState, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(state, "tow")
    monkeypatch.setattr("sys.stdin", FakeStdin(b""))
    with pytest.raises(UsageError, match="needs the new text"):
        obey("/edit", state, dialogue)
    monkeypatch.setattr("sys.stdin", FakeStdin(b"", terminal=True))
    assert obey("/edit", state, dialogue) == Outcome()
    assert state.take_draft() == "tow"
    assert state.take_draft() == ""
    assert contents(state) == []


def test_thinking_is_switched(dialogue: Dialogue, state: ChatState) -> None:
    obey("/think on", state, dialogue)
    assert state.conversation.thinking
    obey("/think off", state, dialogue)
    assert not state.conversation.thinking


def test_save_and_load(dialogue: Dialogue, state: ChatState, tmp_path: Path) -> None:
    answered(state, "héllo")
    obey("/think on", state, dialogue)
    path = tmp_path / "talk.json"
    obey(f"/save {path}", state, dialogue)
    assert [one.name for one in tmp_path.iterdir()] == ["talk.json"]
    fresh = ChatState.begin(DecodingOptions(), system=None, thinking=False)
    obey(f"/load {path}", fresh, dialogue)
    assert fresh.conversation == state.conversation


@pytest.mark.parametrize(
    "saved",
    ["", "[]", "{}", '{"messages": 3}', '{"messages": [3]}', '{"messages": [], "thinking": 1}',
     '{"messages": [], "more": 1}', '{"messages": [{"role": "devil", "content": "x"}]}'],
)  # fmt: skip
def test_files_that_are_no_conversation(
    dialogue: Dialogue, state: ChatState, tmp_path: Path, saved: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(saved)
    with pytest.raises(InputError):
        obey(f"/load {path}", state, dialogue)
    assert contents(state) == []


def test_images_follow_their_turns(seeing: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "red.png"
    image.new("RGB", (48, 48), "red").save(path)
    eyes = Dialogue.load(ModelOptions(model=str(seeing)))
    state = ChatState.begin(DecodingOptions(), system=None, thinking=False)
    obey(f"/image {path}", state, eyes)
    answered(state, "what is it")
    assert len(state.pictures) == 1
    assert state.conversation.messages[0].image_count == 1
    assert not state.waiting
    answered(state, "and now")
    assert len(state.pictures) == 1
    with pytest.raises(UsageError, match="images"):
        obey(f"/save {tmp_path / 'x'}", state, eyes)
    obey("/undo", state, eyes)
    outcome = obey("/edit what is that", state, eyes)
    assert outcome.message == "what is that"
    assert [len(state.waiting), len(state.pictures)] == [1, 0]
    conversation, pictures = state.with_message("what is that")
    assert isinstance(conversation.messages[0], Message)
    assert isinstance(conversation.messages[0].content[0], ImagePart)
    assert len(pictures) == 1


def test_a_message_may_begin_with_a_slash(sfumato: Program, tiny: Path) -> None:
    slash = sfumato("chat", "-m", tiny, "--max-new-tokens", "8", stdin="//hello\n")
    model = library.load(tiny)
    expected = model.answer("/hello", max_new_tokens=8)
    assert isinstance(expected, str)
    assert slash.out == expected.strip("\n") + "\n"


def test_a_failed_turn_leaves_the_conversation(dialogue: Dialogue, state: ChatState) -> None:
    long = "1 2 " * 5000
    with pytest.raises(InputError, match="maximum context length"):
        chatting._answer(dialogue, state, long, live=False)
    assert state.conversation == Conversation()
    assert state.last_message == long


def test_saved_files_are_json(dialogue: Dialogue, state: ChatState, tmp_path: Path) -> None:
    answered(state, "a")
    obey(f"/save {tmp_path / 't.json'}", state, dialogue)
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved == {
        "thinking": False,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "yes"},
        ],
    }
