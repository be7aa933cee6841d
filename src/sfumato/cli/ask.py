"""`sfumato ask`: one prompt, one answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options import DecodingOptions, Mode, ModelOptions
from sfumato.cli.terminal import can_animate, output_console, print_json, say
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.cli.dialogue import Dialogue, Picture, Reply
    from sfumato.text.chat import Conversation

MAX_PROMPT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class AskOptions:
    """What goes with the prompt."""

    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions before the prompt.")
    ] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="An image to look at; may be given several times."),
    ] = None
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="Let the model think before it answers.")
    ] = False


@dataclass(frozen=True)
class OutputOptions:
    """How the answer is shown."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, thought, figures.")
    ] = False
    live: Annotated[
        bool,
        typer.Option(
            "--live/--no-live", help="Show the canvas while it settles, if this is a terminal."
        ),
    ] = True
    pace: Annotated[
        int | None,
        typer.Option(
            metavar="MS", help="Least milliseconds a step stays on the screen: 40, or 0 for none."
        ),
    ] = None

    def pace_seconds(self, mode: Mode) -> float | None:
        """`pace` in seconds. Raises InputError outside 0 to 10,000 ms, or without a canvas.

        There is none in a pipe either, nor on a terminal that cannot redraw lines.
        """
        if self.pace is None:
            return None
        flags = {"--json": self.as_json, "--no-live": not self.live, f"--mode {mode}": True}
        without = next(flag for flag, given in flags.items() if given)
        if without != "--mode diffusion":
            raise InputError(
                "--pace is for the live canvas", hint=f"leave it out, or leave {without} out"
            )
        if not 0 <= self.pace <= 10_000:
            raise InputError(f"--pace must be from 0 to 10000 milliseconds, not {self.pace}")
        if not can_animate():
            why = "this terminal (TERM) has none" if sys.stdout.isatty() else "a pipe gets none"
            raise InputError(f"--pace is for the live canvas, and {why}", hint="leave it out")
        return self.pace / 1000


def ask(
    model: ModelOptions,
    asking: AskOptions,
    decoding: DecodingOptions,
    output: OutputOptions,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Read from stdin if left out, or given as -."),
    ] = None,
) -> None:
    """Answer one prompt. On a terminal the canvas is shown as it settles; a pipe gets the answer.

    Uncertain positions are hazy and coloured by confidence, accepted ones bold, finished text
    plain.
    """
    decoding.check()
    decoding.check_mode()
    pace = output.pace_seconds(decoding.mode)
    text = prompt_text(prompt or [])
    from sfumato.cli.dialogue import Dialogue

    dialogue = Dialogue.load(model)
    pictures = [dialogue.picture(path) for path in asking.image or []]
    conversation = _conversation(text, asking, len(pictures))
    if output.live and not output.as_json and can_animate():
        _answer_live(dialogue, conversation, decoding, pictures, pace)
        return
    reply = dialogue.reply(conversation, decoding, pictures)
    if output.as_json:
        print_json(_report(dialogue, decoding, reply))
    else:
        say(reply.parsed.answer.strip("\n"))


def prompt_text(words: list[str]) -> str:
    """The prompt from the arguments, or from stdin without any. Raises InputError if empty."""
    if words not in ([], ["-"]):
        text = " ".join(words)
    elif sys.stdin.isatty() and not words:
        raise InputError("there is no prompt", hint='sfumato ask "..."; or sfumato chat to talk')
    else:
        text = _read_stdin()
    if not text.strip():
        raise InputError("the prompt is empty", hint="write what you want to ask")
    return text


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise InputError(f"stdin holds more than the {MAX_PROMPT_BYTES:,} bytes a prompt may have")
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as problem:
        raise InputError(f"stdin is no UTF-8 text: byte {problem.start} cannot be read") from None


def _conversation(text: str, asking: AskOptions, pictures: int) -> Conversation:
    from sfumato.text.chat import Conversation, ImagePart, TextPart

    images = tuple(ImagePart() for _ in range(pictures))
    parts: tuple[TextPart | ImagePart, ...] = (*images, TextPart(text))
    conversation = Conversation(thinking=asking.think)
    if asking.system is not None:
        conversation = conversation.instruct(asking.system)
    return conversation.say(parts if images else text)


def _answer_live(
    dialogue: Dialogue,
    conversation: Conversation,
    decoding: DecodingOptions,
    pictures: list[Picture],
    pace: float | None,
) -> None:
    from sfumato.cli.dialogue import show_reply

    prompt = conversation.messages[-1].content
    live = dialogue.live_canvas(prompt if isinstance(prompt, str) else "", decoding, pace)
    reply = dialogue.reply(conversation, decoding, pictures, live)
    show_reply(output_console(), reply, shown=live is not None)


def _report(dialogue: Dialogue, decoding: DecodingOptions, reply: Reply) -> dict[str, Any]:
    parsed = reply.parsed
    return {
        "model": dialogue.name,
        "mode": decoding.mode,
        "seed": decoding.seed,
        "text": parsed.answer,
        "thought": parsed.thought,
        "tool_calls": list(parsed.tool_calls),
        **reply.figures(),
    }
