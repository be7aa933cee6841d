"""Record docs/images/live-canvas.svg: the live canvas of a real answer, four steps side by side.

Usage: python scripts/record_live_canvas.py [--model MODEL] [--seed N] [--output FILE] [PROMPT]

The frames are drawn by the program's own live canvas while the model answers; without --model that
is the small model in the package, without PROMPT the README's puzzle.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sfumato.cli.dialogue import Dialogue, figures_line
from sfumato.cli.live.live_canvas import LiveCanvas
from sfumato.cli.live.tokens import TokenizerText
from sfumato.cli.live.views import GridView
from sfumato.cli.options import DecodingOptions, ModelOptions
from sfumato.cli.terminal import printable
from sfumato.diffusion.events import StepEvent
from sfumato.text.chat import Conversation

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "live-canvas.svg"
PUZZLE = "16.79.832..7....96..38624...152.496864291..7.9.83.624..3.5471897..18362..8...9.53"
STAGES = 4
GAP = 3
TEXT_COLUMNS = 44  # of one stage of running text; a grid brings its own width
ROWS = 40


class Recorder(LiveCanvas):
    """The live canvas, keeping every frame it draws."""

    frames: list[tuple[Group, Text]]

    def on_step(self, event: StepEvent) -> None:
        """Draw a step and keep it, with what stands under it in the picture."""
        super().on_step(event)
        width = self.stage_columns()
        caption = Text(f"step {event.step}, entropy {float(event.entropy[0].mean()):.2f}", "dim")
        self.frames.append((Group(*self.picture(width)), caption))

    def stage_columns(self) -> int:
        """Columns of one frame: too few for the figures to stand beside it."""
        view = self.view
        return view.columns if isinstance(view, GridView) else TEXT_COLUMNS


def spread(count: int, stages: int = STAGES) -> list[int]:
    """At most `stages` indices below `count`, first and last among them, evenly apart."""
    if count <= stages:
        return list(range(count))
    return [round(index * (count - 1) / (stages - 1)) for index in range(stages)]


def record(prompt: str, model: str | None, seed: int) -> str:
    """Let the model answer `prompt` and return the picture as SVG."""
    dialogue = Dialogue.load(ModelOptions(model=model))
    options = DecodingOptions(seed=seed)
    settings = dialogue.settings(options)
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, height=ROWS)
    text = TokenizerText(dialogue.model.tokenizer, settings.eos_token_id)
    recorder = Recorder(screen, text, prompt, pace=0.0, max_new_tokens=settings.max_new_tokens)
    recorder.frames = []
    reply = dialogue.reply(Conversation().say(prompt), options, live=recorder)

    table = Table.grid(padding=(0, GAP, 0, 0))
    chosen = [recorder.frames[index] for index in spread(len(recorder.frames))]
    table.add_row(*(frame for frame, _ in chosen))
    table.add_row(*(caption for _, caption in chosen))
    named = f" --model {model}" if model else ""
    command = Text(f'$ sfumato ask{named} "{prompt}"', no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [command, Text(), table, Text()]
    parts += [Text(printable(reply.parsed.answer)), Text(figures_line(reply), "dim")]
    columns = len(chosen) * (recorder.stage_columns() + GAP)
    picture = Console(
        file=io.StringIO(),
        record=True,
        force_terminal=True,
        color_system="truecolor",
        width=columns,
    )
    picture.print(*parts, sep="\n")
    return picture.export_svg(title="sfumato ask", unique_id="live-canvas")


def main() -> None:
    """Record and write the picture, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt", nargs="?", default=PUZZLE)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    svg = record(arguments.prompt, arguments.model, arguments.seed)
    aside = arguments.output.with_suffix(".part")
    aside.write_text(svg, encoding="utf-8")
    os.replace(aside, arguments.output)
    print(f"wrote {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
