"""The live canvas: follows events, prints what is committed, leaves the finished text."""

from __future__ import annotations

import pytest
import torch

from sfumato.cli.live.live_canvas import LiveCanvas
from sfumato.diffusion.events import CommitEvent, StepEvent
from tests.cli.checkpoints import PUZZLE, SOLUTION
from tests.cli.fakes import CLOSE, OPEN, STOP, Clock, ids, live, row, written


def picture(canvas: LiveCanvas, width: int = 60) -> list[str]:
    return [line.plain for line in canvas.picture(width)]


def rendered(canvas: LiveCanvas, width: int, height: int) -> list[str]:
    return [str(line) for line in canvas.render(width, height).renderables]


def test_text_comes_out_of_the_noise() -> None:
    canvas = live()
    with canvas:
        assert picture(canvas) == []
        canvas.show_row(row("hello", 0), 0, 1, 9)
        assert picture(canvas) == ["#####"]
        canvas.show_row(row("hello", 3), 0, 2, 9)
        assert picture(canvas) == ["hel##"]
        canvas.show_row(row("hello", 5, stops=3), 0, 3, 9)
        assert picture(canvas) == ["hello###"]
        canvas.commit([*ids("hello"), STOP, STOP, STOP])
    assert written(canvas.console).endswith("hello\n")
    assert canvas.text == "hello"


def test_an_event_is_drawn_and_committed() -> None:
    canvas = live()
    draft = torch.tensor([ids("ab"), ids("zz")])
    with canvas:
        canvas.on_step(
            StepEvent(
                canvas_index=0, step=1, steps_max=4, argmax=draft, current=draft,
                entropy=torch.zeros(2, 2), accepted=torch.ones(2, 2, dtype=torch.bool),
                finished=torch.tensor([True, False]),
            )
        )  # fmt: skip
        assert picture(canvas) == ["ab"]
        canvas.on_commit(CommitEvent(0, draft))
    assert canvas.text == "ab"


def test_whole_lines_go_above_and_the_last_stays_live() -> None:
    canvas = live()
    with canvas:
        canvas.commit(ids("one\ntwo\nthr"))
        assert "one\ntwo\n" in written(canvas.console)
        assert "thr" not in written(canvas.console)
        canvas.show_row(row("ee", 2), 1, 1, 9)
        assert picture(canvas) == ["three"]
        canvas.commit(ids("ee", stop=True))
    assert written(canvas.console).endswith("three\n")
    assert canvas.text == "one\ntwo\nthree"


def test_an_answer_that_ends_in_a_line_break() -> None:
    canvas = live()
    with canvas:
        canvas.commit(ids("one\n", stop=True))
    assert canvas.text == "one\n"
    assert written(canvas.console).count("one\n") == 1


def test_control_tokens_are_seen_but_are_no_text() -> None:
    canvas = live()
    with canvas:
        canvas.commit([OPEN, *ids("hm"), CLOSE, *ids("yes", stop=True)])
    assert "⟨channel⟩hm⟨channel⟩yes" in written(canvas.console)
    assert canvas.text == "hmyes"


def test_figures_add_up_over_canvases() -> None:
    canvas = live()
    with canvas:
        canvas.show_row(row("abcd", 2), 0, 1, 9)
        canvas.show_row(row("abcd", 4), 0, 2, 9)
        assert "tokens per forward 2.0" in rendered(canvas, 80, 24)[-1]
        canvas.commit(ids("abcd"))
        canvas.show_row(row("efgh", 1), 1, 1, 9)
        last = rendered(canvas, 80, 24)[-1]
    assert "step 1/9" in last
    assert "canvas 2" in last
    assert "tokens per forward 1.7" in last


def test_what_goes_beyond_the_limit_is_not_printed() -> None:
    canvas = live(limit=6)
    with canvas:
        canvas.commit(ids("abcd"))
        canvas.commit(ids("efgh"))
    assert canvas.text == "abcdef"


def test_a_small_window_shows_the_end() -> None:
    canvas = live()
    with canvas:
        canvas.show_row(row("x" * 50 + "end", 53), 0, 1, 9)
        lines = rendered(canvas, 10, 5)
    assert lines[0] == "⋮ 4 lines above"
    assert lines[-2] == "end"
    assert len(lines) == 4


@pytest.mark.parametrize("width", [1, 2, 3, 10, 24, 25, 40, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 14, 50])
@pytest.mark.parametrize("prompt", ["", PUZZLE])
def test_any_size_of_window_can_be_drawn(width: int, height: int, prompt: str) -> None:
    canvas = live(prompt, width=width, height=height)
    with canvas:
        for step in range(1, 4):
            canvas.show_row(row(SOLUTION, 27 * step, stops=2), 0, step, 9)
        canvas.commit(ids(SOLUTION, stop=True))
    assert canvas.text == SOLUTION


def test_a_puzzle_is_drawn_as_its_grid_with_the_figures_beside() -> None:
    canvas = live(PUZZLE, width=80)
    with canvas:
        canvas.show_row(row(SOLUTION, 81), 0, 5, 48)
        lines = rendered(canvas, 79, 24)
        assert len(lines) == 13
        assert "5/48" in "".join(lines)
        canvas.commit(ids(SOLUTION, stop=True))
    left = written(canvas.console)
    assert "│ 1 6 4 │ 7 9 5 │ 8 3 2 │" in left
    assert "✓ every row, column and box holds 1 to 9" in left
    assert left.endswith(f"{SOLUTION}\n")


def test_a_wrong_grid_is_said_to_be_wrong() -> None:
    canvas = live(PUZZLE, width=100)
    with canvas:
        canvas.commit(ids("1" * 81, stop=True))
    assert "✗ not a solution of this puzzle" in written(canvas.console)


def test_an_answer_that_is_no_grid_is_text() -> None:
    canvas = live(PUZZLE, width=80)
    with canvas:
        canvas.commit(ids("I do not know", stop=True))
    assert "I do not know" in written(canvas.console)
    assert "┌" not in written(canvas.console)


def test_a_failure_leaves_nothing_half_written() -> None:
    canvas = live()

    def interrupted() -> None:
        with canvas:
            canvas.commit(ids("half"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "half" not in written(canvas.console)


def test_the_pace_holds_a_fast_model_back() -> None:
    clock = Clock()
    canvas = live(clock=clock, pace=0.04)
    with canvas:
        canvas.show_row(row("ab", 0), 0, 1, 9)
        assert clock.slept == []
        clock.now += 0.01
        canvas.show_row(row("ab", 1), 0, 2, 9)
        assert clock.slept == [pytest.approx(0.03)]
        clock.now += 1.0
        canvas.show_row(row("ab", 2), 0, 3, 9)
        assert len(clock.slept) == 1


def test_the_views_own_time_is_not_the_models() -> None:
    clock = Clock()
    canvas = live(clock=clock, pace=1.0)
    draft = torch.tensor([ids("ab")])
    event = StepEvent(0, 1, 9, draft, draft, torch.zeros(1, 2), draft > 0, draft[:, 0] > 0)
    with canvas:
        for _ in range(3):
            clock.now += 0.2
            canvas.on_step(event)
    assert sum(clock.slept) == pytest.approx(1.6)
    assert canvas.seconds == pytest.approx(0.6)


def test_each_frame_is_shown_at_once() -> None:
    canvas = live()
    with canvas:
        canvas.show_row(row("ab", 1), 0, 1, 9)
    assert written(canvas.console).count("\x1b[?2026h") == 1
    assert written(canvas.console).count("\x1b[?2026l") == 1
