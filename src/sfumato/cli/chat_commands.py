"""The commands of `sfumato chat`, each a line that begins with a slash."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sfumato.cli.options import DecodingOptions, Mode
from sfumato.cli.terminal import print_pairs, say
from sfumato.config.checkpoint_file import expanded, is_there
from sfumato.errors import InputError, UsageError

if TYPE_CHECKING:
    from sfumato.cli.chat_state import ChatState
    from sfumato.cli.dialogue import Dialogue

MAX_SAVED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Outcome:
    """What a command asks for: leaving, or a message to send."""

    leave: bool = False
    message: str | None = None


@dataclass(frozen=True)
class Command:
    """A command's usage, its one line of help, and what it does."""

    usage: str
    help: str
    run: Callable[[str, ChatState, Dialogue], Outcome]


def obey(line: str, state: ChatState, dialogue: Dialogue) -> Outcome:
    """Run the command in `line`. Raises UsageError, naming the nearest, for one that is none."""
    name, argument = (*line[1:].split(None, 1), "", "")[:2]
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"there is no command /{name}",
            hint=f"did you mean /{near[0]}?"
            if near
            else "/help lists them; // begins a message with a slash",
        )
    if "\0" in argument:
        raise UsageError(f"/{name} takes no NUL characters")
    if argument and " " not in command.usage:
        raise UsageError(f"/{name} takes nothing behind it", hint=f"type {command.usage} alone")
    return command.run(argument.strip(), state, dialogue)


def _help(_argument: str, _state: ChatState, _dialogue: Dialogue) -> Outcome:
    print_pairs((command.usage, command.help) for command in COMMANDS.values())
    return Outcome()


def _edit(argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    if not state.last_message:
        raise UsageError("there is no message to edit yet")
    if not argument and not sys.stdin.isatty():
        raise UsageError("/edit needs the new text here", hint="/edit TEXT")
    answered = state.conversation.messages
    if answered and answered[-1].role == "assistant":
        state.begin_edit(_pictures_of_last_turn(state))
    if argument:
        return Outcome(message=argument)
    state.draft = state.last_message
    return Outcome()


def _pictures_of_last_turn(state: ChatState) -> list[Any]:
    users = [m for m in state.conversation.messages if m.role == "user"]
    count = users[-1].image_count if users else 0
    return list(state.pictures[len(state.pictures) - count :]) if count else []


def _think(argument: str, state: ChatState, dialogue: Dialogue) -> Outcome:
    if argument not in {"on", "off"}:
        raise UsageError("/think wants on or off")
    dialogue.check_thinking(argument == "on")
    state.conversation = state.conversation.with_thinking(argument == "on")
    print(f"thinking is {argument}")
    return Outcome()


def _system(argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    from sfumato.text.chat import check_text

    check_text(argument, "the system's text")
    state.conversation = state.conversation.instruct(argument)
    print("instructions set" if argument else "instructions removed")
    return Outcome()


def _seed(argument: str, state: ChatState, dialogue: Dialogue) -> Outcome:
    if not argument:
        raise UsageError("/seed wants a whole number")
    return _set(f"seed {argument}", state, dialogue)


def _set(argument: str, state: ChatState, dialogue: Dialogue) -> Outcome:
    name, _, value = argument.partition(" ")
    if not name:
        _show_settings(state, dialogue)
        return Outcome()
    changed = change_setting(state.decoding, name, value.strip())
    dialogue.settings(changed)  # held against the checkpoint's own before it is taken over
    state.decoding = changed
    _show_settings(state, dialogue)
    return Outcome()


def change_setting(decoding: DecodingOptions, name: str, value: str) -> DecodingOptions:
    """`decoding` with one setting changed; an empty `value` gives it back to the checkpoint.

    Raises UsageError for a name or value that cannot be.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(decoding)}
    key = name.replace("-", "_")
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1)
        known = ", ".join(one.replace("_", "-") for one in defaults)
        hint = f"did you mean {near[0].replace('_', '-')}?" if near else f"there are {known}"
        raise UsageError(f"there is no setting {name!r}", hint=hint)
    fields: dict[str, Any] = {key: _parsed(key, value) if value else defaults[key]}
    changed = dataclasses.replace(decoding, **fields)
    changed.check()
    return changed


_WHOLE = {"seed", "max_new_tokens", "steps", "stability", "restart_steps"}


def _parsed(key: str, value: str) -> Any:
    if key == "mode":
        if value not in get_args(Mode):
            raise UsageError(f"mode is {' or '.join(get_args(Mode))}, not {value!r}")
        return value
    try:
        return int(value) if key in _WHOLE else float(value)
    except ValueError:
        kind = "a whole number" if key in _WHOLE else "a number"
        raise UsageError(f"{key.replace('_', '-')} wants {kind}, not {value[:40]!r}") from None


def _show_settings(state: ChatState, dialogue: Dialogue) -> None:
    settings = dialogue.settings(state.decoding)
    rows = [("mode", state.decoding.mode), ("seed", str(state.decoding.seed))]
    rows += [
        ("max-new-tokens", str(settings.max_new_tokens)),
        ("steps", str(settings.max_denoising_steps)),
        ("entropy-bound", str(settings.entropy_bound)),
        ("t-min", str(settings.t_min)),
        ("t-max", str(settings.t_max)),
        ("confidence", str(settings.confidence_threshold)),
        ("stability", str(settings.stability_threshold)),
        ("restart-steps", str(settings.restart_steps or "none")),
    ]
    if state.decoding.mode == "autoregressive":
        rows.append(("temperature", str(state.decoding.temperature or "none: greedy")))
    print_pairs(rows)


def _image(argument: str, state: ChatState, dialogue: Dialogue) -> Outcome:
    if not argument:
        raise UsageError("/image wants the path of an image")
    state.waiting.append(dialogue.picture(expanded(argument)))
    print("the image goes with your next message")
    return Outcome()


def _undo(_argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    if not state.undo():
        raise UsageError("there is no turn to take back")
    print("took your last turn back")
    return Outcome()


def _reset(_argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    state.reset()
    print("a new conversation")
    return Outcome()


def _save(argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    if not argument:
        raise UsageError("/save wants a file's name")
    if state.pictures:
        raise UsageError("a conversation with images cannot be saved")
    path = expanded(argument)
    if is_there(path) and path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file in it")
    if is_there(path) and not path.is_file():  # a device's name would be taken from it
        raise UsageError(f"{path} is not a regular file", hint="name another file")
    saved = {
        "thinking": state.conversation.thinking,
        "messages": [{"role": m.role, "content": m.content} for m in state.conversation.messages],
    }
    _write_whole(path, json.dumps(saved, ensure_ascii=False, indent=2).encode("utf-8"))
    say(f"saved {path}")
    return Outcome()


def _write_whole(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as problem:
        with contextlib.suppress(OSError):  # a name too long for one is too long for both
            aside.unlink(missing_ok=True)
        raise InputError(f"{path}: {problem.strerror or problem}") from None


def _load(argument: str, state: ChatState, _dialogue: Dialogue) -> Outcome:
    if not argument:
        raise UsageError("/load wants a file's name")
    from sfumato.config.json_file import read_json
    from sfumato.text.chat import Conversation, message_from_json

    path = Path(os.path.realpath(expanded(argument)))  # a link of the user's own may be followed
    saved = read_json(path, limit=MAX_SAVED_BYTES, error=InputError)
    messages, thinking = saved.get("messages"), saved.get("thinking", False)
    whole = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not whole or not isinstance(thinking, bool) or set(saved) - {"messages", "thinking"}:
        raise InputError(f"{path} is no conversation that /save wrote")
    state.take(Conversation(tuple(message_from_json(m) for m in messages or ()), thinking))
    print(f"{len(state.conversation.messages)} messages loaded")
    return Outcome()


def _exit(_argument: str, _state: ChatState, _dialogue: Dialogue) -> Outcome:
    return Outcome(leave=True)


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "edit": Command("/edit [TEXT]", "change your last message and ask again", _edit),
    "undo": Command("/undo", "take your last turn back", _undo),
    "reset": Command("/reset", "begin a new conversation", _reset),
    "think": Command("/think on|off", "let the model think before it answers", _think),
    "system": Command("/system [TEXT]", "set or remove the instructions", _system),
    "image": Command("/image PATH", "show an image with your next message", _image),
    "seed": Command("/seed N", "equal seeds give equal answers", _seed),
    "set": Command("/set [NAME [VALUE]]", "show or change how the model decodes", _set),
    "save": Command("/save FILE", "write the conversation as JSON", _save),
    "load": Command("/load FILE", "go on with a saved conversation", _load),
    "exit": Command("/exit", "leave; so does Ctrl-D", _exit),
}
