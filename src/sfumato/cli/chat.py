"""`sfumato chat`: a conversation at the terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from sfumato.cli.ask import MAX_PROMPT_BYTES
from sfumato.cli.failures import one_line
from sfumato.cli.options import DecodingOptions, ModelOptions
from sfumato.cli.terminal import can_animate, output_console, say
from sfumato.errors import InputError, SfumatoError

if TYPE_CHECKING:
    from sfumato.cli.chat_state import ChatState
    from sfumato.cli.dialogue import Dialogue

PROMPT, MORE = "> ", ". "
WELCOME = "Talk to {name}. /help lists the commands; /exit or Ctrl-D leaves."


@dataclass(frozen=True)
class ChatOptions:
    """How the conversation begins and is shown."""

    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions before the conversation.")
    ] = None
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="Let the model think before it answers.")
    ] = False
    live: Annotated[
        bool,
        typer.Option(
            "--live/--no-live", help="Show the canvas while it settles, if this is a terminal."
        ),
    ] = True


def chat(model: ModelOptions, decoding: DecodingOptions, options: ChatOptions) -> None:
    """Talk with a model over several turns. /help lists what can be typed besides messages.

    A line that ends in a backslash goes on in the next. From a pipe, each line is a message and
    the answers are written plainly, a line each where the model writes one.
    """
    decoding.check()
    from sfumato.cli.chat_state import ChatState
    from sfumato.cli.dialogue import Dialogue
    from sfumato.text.chat import check_text

    check_text(options.system or "", "--system")
    dialogue = Dialogue.load(model)
    state = ChatState.begin(decoding, system=options.system, thinking=options.think)
    dialogue.check_thinking(options.think)
    if sys.stdin.isatty():
        _talk(dialogue, state, live=options.live and can_animate())
    else:
        for message in joined_lines(piped_lines(sys.stdin.buffer)):
            if message.strip() and _take_line(dialogue, state, message, live=False):
                return


def piped_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a pipe. Raises InputError, naming the line, for one that is no text or long."""
    for number in itertools.count(1):
        data = stream.readline(MAX_PROMPT_BYTES + 1)
        if not data:
            return
        if len(data) > MAX_PROMPT_BYTES:
            raise InputError(
                f"line {number} of stdin holds more than the {MAX_PROMPT_BYTES:,} bytes "
                "a prompt may have"
            )
        try:
            yield data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"line {number} of stdin is no UTF-8 text") from None


def joined_lines(lines: Iterator[str]) -> Iterator[str]:
    """Messages from lines: one that ends in a backslash goes on in the next."""
    held: list[str] = []
    for line in lines:
        if line.endswith("\\"):
            held.append(line[:-1])
            continue
        yield "\n".join([*held, line])
        held = []
    if held:
        yield "\n".join(held)


def _talk(dialogue: Dialogue, state: ChatState, *, live: bool) -> None:
    """Read, answer, until the end of input. Ctrl-C drops the line or the answer under way."""
    _prepare_line_editing()
    say(WELCOME.format(name=dialogue.name))
    while True:
        try:
            message = _read_message(state)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            state.abandon_edit()
            continue
        except UnicodeDecodeError:
            _tell(InputError("the line is no UTF-8 text"))
            state.abandon_edit()
            continue
        if not message.strip():
            state.abandon_edit()
        try:
            if message.strip() and _take_line(dialogue, state, message, live=live):
                return
        except KeyboardInterrupt:
            print("stopped: the message was taken back; /edit brings it up again")
        except SfumatoError as error:
            _tell(error)


def _tell(error: SfumatoError) -> None:
    hint = f"\n  {one_line(error.hint)}" if error.hint else ""
    print(f"sfumato: {one_line(error.message)}{hint}", file=sys.stderr)


def _take_line(dialogue: Dialogue, state: ChatState, line: str, *, live: bool) -> bool:
    """Obey a command or answer a message; whether the conversation is over."""
    from sfumato.cli.chat_commands import obey

    message: str | None = line
    if line.startswith("/") and not line.startswith("//"):
        state.abandon_edit()
        outcome = obey(line, state, dialogue)
        if outcome.leave:
            return True
        message = outcome.message
    elif line.startswith("//"):
        message = line[1:]  # a message that begins with a slash
    if message is not None:
        try:
            _answer(dialogue, state, message, live=live)
        except BaseException:  # Ctrl-C too
            state.abandon_edit()
            raise
    return False


def _answer(dialogue: Dialogue, state: ChatState, message: str, *, live: bool) -> None:
    """One turn. The conversation takes it over only when the answer is there."""
    from sfumato.cli.dialogue import show_reply

    if not message.strip():
        raise InputError("the message is empty", hint="write what you want to say")
    state.last_message = message
    conversation, pictures = state.with_message(message)
    canvas = dialogue.live_canvas(message, state.decoding, None) if live else None
    reply = dialogue.reply(conversation, state.decoding, pictures, canvas)
    if sys.stdout.isatty():
        show_reply(output_console(), reply, shown=canvas is not None)
    else:
        say(reply.parsed.answer.strip("\n"))
    state.take(conversation.reply(reply.parsed), pictures)
    state.before_edit = None


def _prepare_line_editing() -> None:
    """Arrow keys and history through readline, where Python has it."""
    try:
        import readline
    except ImportError:
        return  # a Python without it reads lines plainly
    readline.set_auto_history(True)


def _read_message(state: ChatState) -> str:
    """One message from the terminal, over several lines if they end in a backslash.

    The end of input ends a message that was begun, as it does in a pipe.
    """
    lines = [_read_line(PROMPT, state.take_draft())]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(_read_line(MORE, ""))
        except EOFError:
            print()
    return "\n".join(lines)


def _read_line(prompt: str, draft: str) -> str:
    """A line with `draft` already typed in, where readline can do that."""
    if not draft:
        return input(prompt)
    try:
        import readline
    except ImportError:
        return input(prompt)
    readline.set_startup_hook(lambda: readline.insert_text(draft.replace("\n", " ")))
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook()
