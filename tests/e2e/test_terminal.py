"""`ask` and `chat` on a real terminal: the live canvas, colours, interrupts, line editing."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import sfumato as library
from sfumato.cli.terminal import printable
from tests.cli.checkpoints import PUZZLE

terminal = pytest.importorskip("tests.e2e.terminal")
Terminal = terminal.Terminal

GRID_TOP = "┌───────┬───────┬───────┐"
TRUE_COLOUR = re.compile(rb"\x1b\[[0-9;]*38;2;")
ANY_COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])[;m]")


def solid(text: str) -> str:
    """`text` without white space: how a terminal broke the lines does not matter."""
    return "".join(text.split())


def without_control(text: str) -> str:
    """`text` without the names of control tokens, which are no part of an answer."""
    return re.sub(r"⟨[a-z_|]*⟩", "", solid(text))


def answer(folder: Path, prompt: str, seed: int = 0, max_new_tokens: int | None = None) -> str:
    text = library.load(folder).answer(prompt, seed, max_new_tokens)
    assert isinstance(text, str)
    return solid(printable(text))


def test_ask_shows_the_text_coming_out_of_the_noise(tiny: Path) -> None:
    arguments = ("ask", "-m", str(tiny), "hello", "--pace", "5", "--max-new-tokens", "84")
    with Terminal(*arguments, fresh=True) as seen:
        assert seen.wait() == 0
    assert len(seen.frames) == 4  # one a denoising step
    for number, frame in enumerate(seen.frames, 1):
        assert f"step {number}/4" in frame[-1]
        assert "entropy" in frame[-1]
        assert "tokens per forward" in frame[-1]
    bodies = ["".join(frame[1:-1]) for frame in seen.frames]
    assert len(set(bodies)) == 4
    assert TRUE_COLOUR.search(seen.raw)
    assert answer(tiny, "hello", max_new_tokens=84) in without_control(seen.text)
    assert "4 steps, 1 canvas, " in seen.text
    assert "step 4/4" not in seen.text
    assert b"\x1b[?25h" in seen.raw.split(b"\x1b[?25l")[-1]  # the cursor is back


def test_ask_draws_a_puzzle_as_its_grid(tiny: Path) -> None:
    arguments = ("ask", "-m", str(tiny), PUZZLE, "--max-new-tokens", "84", "--pace", "0")
    with Terminal(*arguments) as seen:
        assert seen.wait() == 0
    assert all(GRID_TOP in "\n".join(frame) for frame in seen.frames)
    assert any("entropy" in line and line[0] in "│├" for line in seen.frames[0])


@pytest.mark.parametrize("columns", [18, 45])
def test_narrow_windows(tiny: Path, columns: int) -> None:
    arguments = ("ask", "-m", str(tiny), "hi", "--max-new-tokens", "84", "--pace", "0")
    with Terminal(*arguments, columns=columns, rows=50) as seen:
        assert seen.wait() == 0
    assert answer(tiny, "hi", max_new_tokens=84) in without_control(seen.text)
    assert all("step" in frame[-1] for frame in seen.frames)


def test_no_color_leaves_the_canvas_and_takes_the_colours(tiny: Path) -> None:
    arguments = ("ask", "-m", str(tiny), "hi", "--max-new-tokens", "84", "--pace", "0")
    with Terminal(*arguments, environment={"NO_COLOR": "1"}) as seen:
        assert seen.wait() == 0
    assert not ANY_COLOUR.search(seen.raw)
    assert b"\x1b[1m" in seen.raw
    assert len(seen.frames) == 4


def test_a_dumb_terminal_gets_plain_text(tiny: Path) -> None:
    with Terminal("ask", "-m", str(tiny), "hi", environment={"TERM": "dumb"}) as seen:
        assert seen.wait() == 0
    assert b"\x1b" not in seen.raw
    assert not seen.frames
    assert answer(tiny, "hi") in solid(seen.text)


def test_a_terminal_without_a_name_gets_plain_text(tiny: Path) -> None:
    with Terminal("ask", "-m", str(tiny), "hi", environment={"TERM": ""}) as seen:
        assert seen.wait() == 0
    assert b"\x1b" not in seen.raw


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_put_back_when_the_program_is_ended(
    tiny: Path, number: signal.Signals
) -> None:
    with Terminal("ask", "-m", str(tiny), "hello", "--pace", "3000") as seen:
        seen.until(lambda text: "step 1/4" in text)
        assert not seen.echoes
        seen.kill(number)
        assert seen.wait() == 128 + number
        assert seen.echoes
    assert "step" not in seen.text  # the canvas is gone
    assert b"\x1b[?25h" in seen.raw.split(b"\x1b[?25l")[-1]


def test_control_c_ends_in_one_quiet_step(tiny: Path) -> None:
    with Terminal("ask", "-m", str(tiny), "hello", "--pace", "3000") as seen:
        seen.until(lambda text: "step 1/4" in text)
        seen.send("\x03")
        assert seen.wait() == 130
    assert "Traceback" not in seen.text
    assert b"\x1b[?25h" in seen.raw.split(b"\x1b[?25l")[-1]


def test_a_window_may_change_its_size(tiny: Path) -> None:
    arguments = ("ask", "-m", str(tiny), "hello", "--pace", "300", "--max-new-tokens", "84")
    with Terminal(*arguments, columns=80, rows=30) as seen:
        seen.until(lambda text: "step 1/4" in text)
        seen.resize(50, 30)
        assert seen.wait() == 0
    assert answer(tiny, "hello", max_new_tokens=84) in without_control(seen.text)
    assert max(len(line) for line in seen.frames[-1]) <= 50


def test_chat_over_several_turns(tiny: Path) -> None:
    arguments = ("chat", "-m", str(tiny), "--max-new-tokens", "20", "--seed", "1")
    with Terminal(*arguments, columns=100, rows=60) as seen:
        seen.until(lambda text: text.endswith(">"))
        assert "/help lists the commands" in seen.text
        seen.send("hello\r")
        seen.until(lambda text: text.count("tokens per forward, ") == 1 and text.endswith(">"))
        assert answer(tiny, "hello", seed=1, max_new_tokens=20) in without_control(seen.text)
        assert len(seen.frames) >= 4

        seen.send("/frobnicate\r")
        seen.until(lambda text: "there is no command /frobnicate" in text)

        seen.send("/edit\r")  # the last message is typed in, ready to be changed
        seen.until(lambda text: text.endswith("> hello"))
        seen.send(" you\r")
        seen.until(lambda text: text.count("tokens per forward, ") == 2 and text.endswith(">"))
        assert answer(tiny, "hello you", seed=1, max_new_tokens=20) in without_control(seen.text)

        seen.send("\x1b[A")  # the arrow up brings the last line back
        seen.until(lambda text: text.endswith("> hello you"))
        seen.send("\x15")
        seen.send("\x04")
        assert seen.wait() == 0
    assert "Traceback" not in seen.text


def test_chat_survives_an_interrupted_answer(tiny: Path) -> None:
    with Terminal("chat", "-m", str(tiny), rows=50) as seen:
        seen.until(lambda text: text.endswith(">"))
        seen.send("/set steps 400\r")
        seen.until(lambda text: "stability" in text and text.endswith(">"))
        seen.send("hello\r")
        seen.until(lambda text: "step " in text.splitlines()[-1])
        seen.send("typed ahead\x03")
        seen.until(lambda text: "stopped" in text and text.endswith("> typed ahead"))
        assert "step " not in seen.text  # the canvas is gone without a trace
        assert "^C" not in seen.text
        assert "stability" in seen.text
        seen.send("\x03")  # at the prompt it drops the line
        seen.until(lambda text: text.endswith(">"))
        seen.send("/exit\r")
        assert seen.wait() == 0
    assert "Traceback" not in seen.text


def test_chat_takes_bytes_that_are_no_text_and_control_characters(tiny: Path) -> None:
    arguments = ("chat", "-m", str(tiny), "--max-new-tokens", "4", "--steps", "1", "--no-live")
    with Terminal(*arguments, rows=50) as seen:
        seen.until(lambda text: text.endswith(">"))
        seen.send_bytes(b"ab\xff\xfecd\r")
        seen.until(lambda text: "no UTF-8 text" in text and text.endswith(">"))
        seen.send("a\x16\x1b[2Jb\x16\x07c\r")  # Ctrl-V: the next key as it is
        seen.until(lambda text: text.count("tokens per forward") == 1 and text.endswith(">"))
        seen.send("half a line\x04\x04\r")  # Ctrl-D is the end on an empty line alone
        seen.until(lambda text: text.count("tokens per forward") == 2 and text.endswith(">"))
        seen.send("/edit\r")
        seen.until(lambda text: text.endswith("> half a line"))
        seen.send("\x15\x04")
        assert seen.wait() == 0
    assert "Traceback" not in seen.text
    assert "Talk to" in seen.text  # the screen was never erased


def test_chat_on_a_dumb_terminal_writes_no_escapes(tiny: Path) -> None:
    arguments = ("chat", "-m", str(tiny), "--max-new-tokens", "4", "--steps", "1")
    with Terminal(*arguments, environment={"TERM": "dumb"}) as seen:
        seen.until(lambda text: text.endswith(">"))
        seen.send("hi\r")
        seen.until(lambda text: "tokens per forward" in text and text.endswith(">"))
        seen.send("/exit\r")
        assert seen.wait() == 0
    assert b"\x1b" not in seen.raw


def test_a_pace_on_a_dumb_terminal_is_refused(tiny: Path) -> None:
    arguments = ("ask", "-m", str(tiny), "hi", "--pace", "5")
    with Terminal(*arguments, environment={"TERM": "dumb"}) as seen:
        assert seen.wait() == 2
    assert "this terminal (TERM) has none" in seen.text
