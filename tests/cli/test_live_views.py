"""Views: lines, colours, glyphs, the Sudoku grid, the figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from sfumato.cli.live.frame import Cell, Frame
from sfumato.cli.live.lines import committed_runs, draft_run, fold, noise_run
from sfumato.cli.live.palette import ASCII, Glyphs, glyphs_for, make_palette
from sfumato.cli.live.status import (
    beside,
    course,
    panel_fits,
    status_line,
    status_panel,
)
from sfumato.cli.live.views import (
    GridView,
    TextView,
    choose_view,
    find_puzzle,
    grid_is_solved,
)
from sfumato.cli.terminal import printable
from tests.cli.checkpoints import PUZZLE, SOLUTION
from tests.cli.fakes import cells, frame

PALETTE = make_palette()
GLYPHS = Glyphs()
PLAIN = Style()


def plain(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("C", "M", "Z")) | st.just("\n"), max_size=9)
    ),
    st.integers(2, 12),
)
def test_folding_keeps_every_character_and_the_width(parts: list[str], width: int) -> None:
    lines = fold([(part, PLAIN) for part in parts], width)
    assert "".join(plain(lines)) == "".join(parts).replace("\n", "")
    assert all(cell_len(line.plain) <= width for line in lines)


def test_folding_breaks_where_a_terminal_does() -> None:
    assert plain(fold([("abc", PLAIN), ("de\nf", PLAIN)], 4)) == ["abcd", "e", "f"]
    assert plain(fold([("東京a", PLAIN)], 3)) == ["東", "京a"]
    assert plain(fold([], 4)) == [""]
    assert plain(fold([("\n", PLAIN)], 4)) == ["", ""]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb", "a    b"),
        ("\x1b[2Jx", "[2Jx"),
        ("\x9b1mx\x7f", "1mx"),
        ("a\r\nb", "a\nb"),
        ("\u202eab\u2066", "ab"),
    ],
)
def test_what_a_model_writes_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_noise_is_as_wide_as_its_draft() -> None:
    for text, noise in [("word", "xy"), ("word", ""), ("東", "ab"), ("\n", "q"), ("", "q")]:
        run, style = noise_run(Cell(text, noise, 0.1, False), 0, 1, GLYPHS, PALETTE)
        assert cell_len(run) == max(1, cell_len(text.strip("\n")))
        assert style.dim
    assert (
        noise_run(Cell("<turn|>", "z", 0.1, False, control=True), 0, 1, GLYPHS, PALETTE)[0] == "z"
    )


def test_noise_shimmers_from_step_to_step() -> None:
    cell = Cell("ab", "xyz", 0.1, False)
    shown = {noise_run(cell, 0, step, GLYPHS, PALETTE)[0] for step in range(3)}
    assert shown == {"xy", "yz", "zx"}


def test_noise_shows_only_harmless_characters() -> None:
    assert GLYPHS.noise("a\x1b\u202e\u0301 é東א\ufffd") == "aé東"
    assert ASCII.noise("aé") == "a"


def test_drafts_control_tokens_and_stops() -> None:
    assert draft_run(Cell("a\n", "", 0.9, False), GLYPHS, PALETTE)[0] == "a↵"
    assert draft_run(Cell("a\n", "", 1.0, True), GLYPHS, PALETTE)[0] == "a\n"
    stop = Cell("<turn|>", "", 1.0, True, control=True, stop=True)
    assert draft_run(stop, GLYPHS, PALETTE) == ("·", PALETTE.control)
    control = Cell("<|channel>", "", 1.0, True, control=True)
    assert draft_run(control, GLYPHS, PALETTE) == ("⟨channel⟩", PALETTE.control)


def test_states_differ_without_colour() -> None:
    noise, draft = PALETTE.noise, PALETTE.draft(0.7, accepted=False)
    accepted = PALETTE.draft(0.7, accepted=True)
    kinds = {(style.dim, style.bold) for style in (noise, draft, accepted)}
    assert len(kinds) == 3


def test_confidence_is_a_ramp() -> None:
    colours = [PALETTE.draft(value / 20, accepted=True).color for value in range(21)]
    assert len(set(colours)) >= 18
    assert PALETTE.draft(-1.0, accepted=False) == PALETTE.draft(0.0, accepted=False)
    assert PALETTE.draft(2.0, accepted=True) == PALETTE.draft(1.0, accepted=True)


def test_thoughts_are_set_apart() -> None:
    written = (
        *cells("a"),
        Cell("<|channel>", "", 1.0, True, control=True),
        *cells("t"),
        Cell("<channel|>", "", 1.0, True, control=True),
        *cells("b"),
    )
    styles = [style for _, style in committed_runs(written, GLYPHS, PALETTE)]
    assert styles == [
        PALETTE.committed, PALETTE.control, PALETTE.thought, PALETTE.control, PALETTE.committed,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", Glyphs()), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("nonsense", ASCII)],
)
def test_glyphs_follow_the_encoding(encoding: str | None, expected: Glyphs) -> None:
    assert glyphs_for(encoding) == expected


def test_ascii_glyphs_are_ascii() -> None:
    view = GridView(PUZZLE, PALETTE, ASCII)
    assert all(line.plain.isascii() for line in view.lines((), frame(SOLUTION), 80))
    assert status_line(frame("abc"), 80, ASCII, PALETTE).plain.isascii()


def test_text_view_draws_committed_text_first() -> None:
    view = TextView(PALETTE, GLYPHS)
    assert view.fits(2)
    assert plain(view.lines(cells("So "), frame("it is"), 40)) == ["So it is"]
    hazy = view.lines(cells("So "), frame("it is", accepted=False, confidence=0.1), 40)
    assert plain(hazy) == ["So ~~~~~"]
    assert plain(view.lines((), frame("it is", accepted=False, confidence=0.6), 40)) == ["it is"]


def test_a_puzzle_is_found_in_a_prompt() -> None:
    assert find_puzzle(PUZZLE) == PUZZLE
    assert find_puzzle(f"Solve {PUZZLE.replace('.', '0')} please") == PUZZLE
    assert find_puzzle(PUZZLE + "1") is None
    assert find_puzzle(f"{PUZZLE} {PUZZLE}") is None
    assert find_puzzle("1 2 3") is None
    assert isinstance(choose_view(PUZZLE, PALETTE, GLYPHS), GridView)
    assert isinstance(choose_view("hello", PALETTE, GLYPHS), TextView)


def test_the_grid_has_boxes_and_bold_givens() -> None:
    view = GridView(PUZZLE, PALETTE, GLYPHS)
    lines = view.lines((), frame(SOLUTION), 80)
    assert len(lines) == 13
    assert {line.cell_len for line in lines} == {view.columns} == {25}
    assert lines[1].plain == "│ 1 6 4 │ 7 9 5 │ 8 3 2 │"
    styles = {span.style for span in lines[1].spans}
    assert PALETTE.given in styles
    assert PALETTE.draft(1.0, accepted=True) in styles
    assert not view.fits(24)


def test_the_grid_under_noise_and_odd_tokens() -> None:
    view = GridView(PUZZLE, PALETTE, GLYPHS)
    assert "1" not in "".join(plain(view.lines((), frame(SOLUTION, False, 0.1), 80)))
    wordy = Frame((Cell("twelve", "~", 1.0, True), *cells(SOLUTION[1:])))
    assert view.lines((), wordy, 80)[1].plain.startswith("│ ~ 6 4 │")
    short = view.lines((), frame("12"), 80)
    assert short[1].plain == "│ 1 2 ░ │ ░ ░ ░ │ ░ ░ ░ │"
    assert plain(view.finished(SOLUTION)) == plain(view.lines((), frame(SOLUTION), 80))


def test_solutions_are_told_from_the_rest() -> None:
    assert grid_is_solved(PUZZLE, SOLUTION)
    swapped = SOLUTION[1] + SOLUTION[0] + SOLUTION[2:]
    assert not grid_is_solved(PUZZLE, swapped)
    assert not grid_is_solved("." * 81, swapped)
    assert not grid_is_solved(PUZZLE, SOLUTION[:-1])
    assert not grid_is_solved(PUZZLE, "1" * 81)
    assert grid_is_solved("." * 81, SOLUTION)


def test_the_line_of_figures_drops_what_does_not_fit() -> None:
    shown = Frame(
        cells("abcd"), step=7, steps_max=48, entropy=0.4321, forwards=2, seconds=1.5,
        history=(4.0, 2.0, 1.0),
    )  # fmt: skip
    line = status_line(shown, 100, GLYPHS, PALETTE).plain
    assert line == (
        "step 7/48 · entropy 0.432 · tokens per forward 2.0 · seconds 1.50 · canvas 1 · █▅▃"
    )
    for width in range(101):
        cut = status_line(shown, width, GLYPHS, PALETTE).plain
        assert cell_len(cut) <= width
        assert line.startswith(cut)


def test_the_panel_stands_in_the_middle_beside_a_narrow_view() -> None:
    assert panel_fits(25, 80)
    assert not panel_fits(25, 50)
    assert not panel_fits(None, 200)
    panel = status_panel(frame("abc"), GLYPHS, PALETTE)
    left = [Text("x" * 5) for _ in range(13)]
    joined = beside(left, panel, 5)
    assert len(joined) == 13
    assert joined[0].plain == "xxxxx"
    assert "step  3/48" in joined[3].plain
    dim = beside([Text("frame", "dim") for _ in range(9)], panel, 5)
    assert all(not line.style for line in dim)  # the figures do not take the frame's style


def test_the_course_of_the_entropy() -> None:
    assert course((4.0, 2.0, 0.0), GLYPHS) == "█▅▁"
    assert course((), GLYPHS) == ""
    assert course((0.0, 0.0), GLYPHS) == "▁▁"
    assert len(course(tuple(float(n) for n in range(1, 50)), GLYPHS)) == 12
