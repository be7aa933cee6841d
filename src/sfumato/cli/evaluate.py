"""`sfumato eval`: accuracy with its interval, and what it costs; sweeps of the decoder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.failures import one_line
from sfumato.cli.fit import judge
from sfumato.cli.machine import look_at_machine
from sfumato.cli.options import MODEL_HELP, DecodingOptions, ModelOptions
from sfumato.cli.terminal import print_json, say
from sfumato.config.fields import short
from sfumato.errors import UsageError

if TYPE_CHECKING:
    from sfumato.api import Model
    from sfumato.cli.dialogue import Dialogue
    from sfumato.evaluation.report import Report
    from sfumato.evaluation.run import Progress
    from sfumato.evaluation.sweep import Sweep
    from sfumato.evaluation.task_sets import TaskSet

ERASE_LINE = "\r\x1b[2K"
MAX_EXAMPLES = 1_000_000  # all are held in memory
EXAMPLES = 1000  # of each held-out task: half an interval is then at most 3.1 points


@dataclass(frozen=True)
class SweepOptions:
    """Values of the decoder's settings to try, separated by commas."""

    sweep_steps: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Denoising steps to try.")
    ] = None
    sweep_entropy_bound: Annotated[
        str | None, typer.Option(metavar="X,X,...", help="Entropy bounds to try.")
    ] = None
    sweep_confidence: Annotated[
        str | None, typer.Option(metavar="X,X,...", help="Confidence thresholds to try.")
    ] = None
    sweep_temperatures: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX,...", help="Temperatures to try, the last step's first."),
    ] = None
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time", help="Change one setting at a time instead of every combination."
        ),
    ] = False
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Add a row of the same weights left to right.")
    ] = False

    def sweep(self) -> Sweep | None:
        """The sweep that was asked for, or None. Raises UsageError for what is no number."""
        from sfumato.evaluation.sweep import Sweep

        sweep = Sweep(
            max_denoising_steps=_numbers("--sweep-steps", self.sweep_steps, int),
            entropy_bound=_numbers("--sweep-entropy-bound", self.sweep_entropy_bound, float),
            confidence_threshold=_numbers("--sweep-confidence", self.sweep_confidence, float),
            temperatures=_pairs("--sweep-temperatures", self.sweep_temperatures),
            design="one-at-a-time" if self.one_at_a_time else "cartesian",
            autoregressive=self.baseline,
        )
        if sweep.axes or self.baseline:
            return sweep
        if self.one_at_a_time:
            raise UsageError("--one-at-a-time is for a sweep", hint="add --sweep-steps 4,8,16,48")
        return None


# What a sweep tries, and the options that set the same for all of it.
_SWEPT = (
    ("sweep_steps", "steps"),
    ("sweep_entropy_bound", "entropy_bound"),
    ("sweep_confidence", "confidence"),
    ("sweep_temperatures", "t_min"),
    ("sweep_temperatures", "t_max"),
)


def check_not_both(sweeping: SweepOptions, decoding: DecodingOptions) -> None:
    """Raise UsageError for a setting that is given and swept, where only the sweep would count."""
    for swept, fixed in _SWEPT:
        if getattr(sweeping, swept) is None or getattr(decoding, fixed) is None:
            continue
        if not sweeping.one_at_a_time:  # there, it is what the others are tried with
            names = [f"--{name.replace('_', '-')}" for name in (fixed, swept)]
            raise UsageError(
                f"{names[0]} and {names[1]} set the same thing", hint=f"leave {names[0]} out"
            )


@dataclass(frozen=True)
class ReportOptions:
    """Where the report goes besides the terminal."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as JSON.")
    ] = None
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the table as Markdown.")
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw accuracy against steps, as .svg or .png."),
    ] = None
    commit: Annotated[
        str, typer.Option(metavar="HASH", help="The commit to name in the report.")
    ] = "unknown"

    def check(self, sweep: Sweep | None) -> None:
        """Raise for a place that cannot be written, before an hour is spent."""
        from sfumato.evaluation.files import check_target
        from sfumato.evaluation.plot import check_plot

        targets = [path for path in (self.output, self.table, self.plot) if path is not None]
        for path in targets:
            check_target(path)
        if len({path.resolve() for path in targets}) < len(targets):
            raise UsageError(
                "--output, --table and --plot name one file twice", hint="give each its own"
            )
        if self.plot is not None:
            if sweep is None:
                raise UsageError("--plot draws a sweep", hint="add --sweep-steps 4,8,16,32")
            check_plot(self.plot)


@dataclass(frozen=True)
class WorkOptions:
    """What the model is asked."""

    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="As sudoku:10-40 or dates; may be given several times. All tasks if left out.",
        ),
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of task, prompt and answer to ask instead."),
    ] = None
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            "-n",
            metavar="N",
            help="Held-out examples of each task, 1000 if left out; of a file the first N.",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(metavar="N", help="Prompts answered at once.")] = 16

    def sets(self, seed: int) -> tuple[TaskSet, ...]:
        """The task sets, made before the model is loaded so that a wrong name costs no time."""
        from sfumato.evaluation.task_sets import read_task_sets, task_sets
        from sfumato.tasks.registry import TASKS

        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be 1 or more, not {self.batch_size}")
        if self.examples is not None and not 1 <= self.examples <= MAX_EXAMPLES:
            raise UsageError(
                f"--examples must be from 1 to {MAX_EXAMPLES:,}, not {short(self.examples)}"
            )
        if self.file is None:
            return task_sets(self.task or list(TASKS), self.examples or EXAMPLES, seed)
        if self.task:
            raise UsageError("--file brings its own tasks", hint="leave --task out")
        return tuple(
            replace(one, examples=one.examples[: self.examples])
            for one in read_task_sets(self.file)
        )


def evaluate(
    work: WorkOptions,
    options: ModelOptions,
    decoding: DecodingOptions,
    sweeping: SweepOptions,
    reporting: ReportOptions,
    checkpoint: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
) -> None:
    """Measure a model on held-out tasks.

    Exact-match accuracy with its 95 % interval, steps per canvas, tokens per forward, seconds.
    With --sweep-..., one row a setting, on equal examples with equal seeds.
    """
    decoding.check()
    decoding.check_mode()
    if checkpoint is not None:
        if options.model is not None:
            raise UsageError("two models are named", hint="give MODEL or --model, not both")
        options = replace(options, model=checkpoint)
    sweep = sweeping.sweep()
    check_not_both(sweeping, decoding)
    reporting.check(sweep)
    if sweep is not None and decoding.mode == "autoregressive":
        raise UsageError("a sweep is of the diffusion mode", hint="--baseline adds the other")
    sets = work.sets(decoding.seed)
    from sfumato.cli.dialogue import Dialogue

    dialogue = Dialogue.load(options)
    if not reporting.as_json:
        hint_at_float32(dialogue.model)
    report = _run(dialogue, sets, sweep, decoding, work.batch_size)
    _publish(dialogue, report, reporting)


def hint_at_float32(model: Model) -> None:
    """A line on stderr if torch runs bf16 on a processor without it, and float32 fits."""
    import torch

    if model.network.dtype != torch.bfloat16 or model.network.device.type != "cpu":
        return
    if model.network.kernels is not None:
        return  # they widen bf16 themselves
    machine = look_at_machine(Path.cwd())
    weights = 4 * sum(tensor.numel() for tensor in model.network.parameters())
    if machine.bfloat16_is_slow and judge("", "float32", weights, machine.memory).fits:
        print(
            "sfumato: bfloat16 is slow on this processor: --dtype float32 is many times faster",
            file=sys.stderr,
            flush=True,
        )


def _run(
    dialogue: Dialogue,
    work: tuple[TaskSet, ...],
    sweep: Sweep | None,
    decoding: DecodingOptions,
    batch_size: int,
) -> Report:
    from sfumato.evaluation import run as running
    from sfumato.evaluation.sweep import run_sweep

    settings = dialogue.settings(decoding)
    told = tell if sys.stderr.isatty() else None
    model: Model = dialogue.model
    common: dict[str, Any] = {
        "seed": decoding.seed,
        "generation": settings,
        "batch_size": batch_size,
        "on_progress": told,
    }
    try:
        if sweep is not None:
            return run_sweep(model, work, sweep, **common)
        return running.evaluate(model, work, mode=decoding.mode, **common)
    finally:
        if told is not None:
            print(ERASE_LINE, end="", file=sys.stderr, flush=True)


def tell(progress: Progress) -> None:
    """One line on stderr that each batch writes anew."""
    setting = f" ({progress.setting})" if progress.setting else ""
    share = 100 * progress.solved / max(1, progress.done)
    line = (
        f"{one_line(progress.task)}{setting}: {progress.done} of {progress.total}, "
        f"{share:.1f} % right, {progress.seconds:.0f} s"
    )
    print(f"{ERASE_LINE}{line}", end="", file=sys.stderr, flush=True)


def _publish(dialogue: Dialogue, report: Report, options: ReportOptions) -> None:
    from sfumato.evaluation import report as reports
    from sfumato.evaluation.facts import gather
    from sfumato.evaluation.files import write_text
    from sfumato.evaluation.plot import write_plot
    from sfumato.evaluation.sweep import SweepReport

    facts = gather(dialogue.model, dialogue.name, options.commit)
    as_json = reports.to_json(report, facts)
    if options.output is not None:
        write_text(options.output, json.dumps(as_json, indent=2, ensure_ascii=False) + "\n")
    if options.table is not None:
        write_text(options.table, reports.markdown(report, facts))
    if options.plot is not None and isinstance(report, SweepReport):
        write_plot(report, options.plot)
    if options.as_json:
        print_json(as_json)
    else:
        say(reports.text(report))


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> tuple[Any, ...]:
    if text is None:
        return ()
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        word = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{option} wants {word} separated by commas, not {text[:60]!r}") from None


def _pairs(option: str, text: str | None) -> tuple[tuple[float, float], ...]:
    if text is None:
        return ()
    try:
        pairs = [tuple(float(one) for one in part.split(":")) for part in text.split(",")]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"{option} wants pairs as 0.4:0.8,0.2:0.6, not {text[:60]!r}")
    return tuple((pair[0], pair[1]) for pair in pairs)
