"""The live canvas: follows a generation's events and redraws the canvas at every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sfumato.cli.live.frame import Cell, Frame, StepRow, TokenText, cells_of, committed_cells
from sfumato.cli.live.keyboard import Interrupts
from sfumato.cli.live.lines import committed_runs
from sfumato.cli.live.palette import Glyphs, Palette, glyphs_for, make_palette
from sfumato.cli.live.status import beside, panel_fits, status_line, status_panel
from sfumato.cli.live.views import GridView, TextView, choose_view, grid_is_solved

if TYPE_CHECKING:
    from sfumato.diffusion.events import CommitEvent, StepEvent

DEFAULT_PACE = 0.04  # seconds a step stays on the screen at least, so that an eye can follow
# Synchronized output: a terminal that knows it shows the lines between the two at once, without
# the erased state in the middle; any other ignores both (private mode 2026).
_HOLD, _RELEASE = "\x1b[?2026h", "\x1b[?2026l"


@dataclass
class Course:
    """What the view has seen of one generation so far."""

    forwards: int = 0
    committed: int = 0
    canvas_index: int = 0
    history: tuple[float, ...] = ()
    frame: Frame | None = None
    before: tuple[Cell, ...] = ()  # committed cells not yet printed above
    text: str = ""  # committed text of the whole answer


class LiveCanvas:
    """Use as a context, and hand `on_step` and `on_commit` to the generation (row 0 is shown).

    Committed lines are printed above and stay; on leaving, the canvas is replaced by the finished
    text and one line of figures.
    """

    def __init__(
        self,
        console: Console,
        tokens: TokenText,
        prompt: str = "",
        *,
        pace: float = DEFAULT_PACE,
        max_new_tokens: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up a view of the answer to `prompt`; nothing is drawn yet.

        `pace` is the least time in seconds between two steps on the screen. What goes beyond
        `max_new_tokens` is no part of the answer and not printed.
        """
        self.console = console
        self._tokens = tokens
        self._glyphs: Glyphs = glyphs_for(console.encoding)
        self._palette: Palette = make_palette()
        self.view: TextView | GridView = choose_view(prompt, self._palette, self._glyphs)
        self._pace = pace
        self._limit = max_new_tokens
        self._clock = clock
        self._sleep = sleep
        self._seen = Course()
        self._live: Live | None = None
        self._interrupts = Interrupts()
        self._started = self._shown = 0.0
        self._own = 0.0  # seconds spent drawing and waiting, which are not the model's

    def __enter__(self) -> Self:
        self._started = self._clock()
        self._interrupts.__enter__()
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._live is not None
        try:
            with self._interrupts.held():
                self._live.stop()
            if kind is None:
                self._print_finished()
        finally:
            self._interrupts.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Time since the start without the view's own."""
        return self._clock() - self._started - self._own

    @property
    def text(self) -> str:
        """The committed text, control tokens left out."""
        return self._seen.text

    def on_step(self, event: StepEvent) -> None:
        """Draw one denoising step; waits if the last was drawn less than `pace` seconds ago."""
        begun = self._clock()
        row = StepRow(
            draft=event.argmax[0].tolist(),
            current=event.current[0].tolist(),
            entropy=event.entropy[0].tolist(),
            accepted=event.accepted[0].tolist(),
        )
        self.show_row(row, event.canvas_index, event.step, event.steps_max)
        self._own += self._clock() - begun

    def show_row(self, row: StepRow, canvas_index: int, step: int, steps_max: int) -> None:
        """Draw one step given as lists."""
        seen = self._seen
        mean = sum(row.entropy) / max(1, len(row.entropy))
        fresh = canvas_index != seen.canvas_index or step == 1
        seen.history = (mean,) if fresh else (*seen.history, mean)
        seen.canvas_index = canvas_index
        seen.forwards += 1
        seen.frame = Frame(
            cells=cells_of(row, self._tokens),
            canvas_index=canvas_index,
            step=step,
            steps_max=steps_max,
            entropy=mean,
            committed=seen.committed,
            forwards=seen.forwards,
            seconds=self.seconds,
            history=seen.history,
        )
        self._wait()
        self._draw()

    def on_commit(self, event: CommitEvent) -> None:
        """Take over a finished canvas; whole lines of it go above the live part for good."""
        begun = self._clock()
        self.commit(event.tokens[0].tolist())
        self._own += self._clock() - begun

    def commit(self, ids: Sequence[int]) -> None:
        """Take over the tokens of a finished canvas."""
        seen = self._seen
        if self._limit is not None:
            ids = ids[: max(0, self._limit - seen.committed)]
        cells = committed_cells(ids, self._tokens)
        seen.committed += min(len(ids), len(cells) + 1)  # the stop is a token too
        seen.text += "".join(cell.text for cell in cells if not cell.control)
        seen.before = (*seen.before, *cells)
        seen.frame = None
        if isinstance(self.view, TextView):
            self._print_lines_above()

    def render(self, width: int, height: int) -> Group:
        """The live part at the present step, at most `height` lines of `width` columns."""
        frame = self._seen.frame
        if frame is None:
            return Group()
        lines, columns = self._canvas_lines(frame, width)
        if panel_fits(columns, width):
            return Group(*beside(lines, self._panel(frame), columns or width))
        room = max(1, height - 2)
        if len(lines) > room:
            hidden = len(lines) - room + 1
            mark = f"{self._glyphs.ellipsis} {hidden} lines above"
            lines = [Text(mark, self._palette.label), *lines[hidden:]]
        return Group(*lines, status_line(frame, width, self._glyphs, self._palette))

    def picture(self, width: int) -> list[Text]:
        """The canvas alone at the present step, without figures, at any height."""
        frame = self._seen.frame
        return [] if frame is None else self._canvas_lines(frame, width)[0]

    def _canvas_lines(self, frame: Frame, width: int) -> tuple[list[Text], int | None]:
        """Lines of the view, or of running text where the view is too wide, and its columns."""
        view: TextView | GridView = self.view
        if not view.fits(width):
            view = TextView(self._palette, self._glyphs)
        return view.lines(self._seen.before, frame, width), view.columns

    def _panel(self, frame: Frame) -> list[Text]:
        return status_panel(frame, self._glyphs, self._palette)

    def _draw(self) -> None:
        assert self._live is not None
        width, height = self.console.size
        # A full last column makes some terminals wrap, so it stays free.
        drawn = self.render(max(1, width - 1), height)
        with self._interrupts.held():
            self.console.file.write(_HOLD)
            self._live.update(drawn, refresh=True)
            self.console.file.write(_RELEASE)
            self.console.file.flush()
        self._shown = self._clock()

    def _wait(self) -> None:
        left = self._shown + self._pace - self._clock()
        if self._shown and left > 0:
            self._sleep(left)

    def _print_lines_above(self) -> None:
        """Print the committed lines that are complete; the last, still growing, stays live."""
        cells = self._seen.before
        last = max((i for i, cell in enumerate(cells) if "\n" in cell.text), default=-1)
        if last < 0:
            return
        done, tail = cells[: last + 1], cells[last + 1 :]
        head, rest = done[-1].text.rsplit("\n", 1)
        done = (*done[:-1], Cell(head, "", 1.0, True))
        self._seen.before = (Cell(rest, "", 1.0, True), *tail) if rest else tail
        with self._interrupts.held():
            if self._live is not None:
                self._live.update(Group(), refresh=True)
            self._print_cells(done)

    def _print_cells(self, cells: Sequence[Cell]) -> None:
        text = Text()
        for run, style in committed_runs(cells, self._glyphs, self._palette):
            text.append(run, style)
        self.console.print(text, soft_wrap=True, highlight=False)

    def _print_finished(self) -> None:
        seen = self._seen
        if isinstance(self.view, GridView):
            self._print_grid(self.view, seen.text.strip())
        if seen.before:
            self._print_cells(seen.before)

    def _print_grid(self, view: GridView, answer: str) -> None:
        if len(answer) != len(view.givens) or not view.fits(self.console.width):
            return
        verdict = (
            Text(f"{self._glyphs.yes} every row, column and box holds 1 to 9", self._palette.good)
            if grid_is_solved(view.givens, answer)
            else Text(f"{self._glyphs.no} not a solution of this puzzle", self._palette.bad)
        )
        for line in [*view.finished(answer), verdict]:
            self.console.print(line, end="\n", highlight=False)
