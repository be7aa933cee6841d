"""Reports as a table for the terminal, as Markdown for a model card, as JSON for programs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Literal

from sfumato.config.generation import GenerationConfig
from sfumato.evaluation.facts import Facts
from sfumato.evaluation.metrics import TaskResult
from sfumato.evaluation.run import EvaluationReport, Plan
from sfumato.evaluation.sweep import SweepReport, SweepRow, values

SCHEMA = 1  # raised when a field of the JSON changes its meaning or goes
Report = EvaluationReport | SweepReport
Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]

_FIGURES = (
    "solved",
    "accuracy",
    "95 % interval",
    "steps per canvas",
    "tokens per forward",
    "tokens/s",
    "seconds",
)

# Headers in two lines, so that a terminal holds the table.
_NARROW = {
    "95 % interval": "95 %\ninterval",
    "steps per canvas": "steps per\ncanvas",
    "tokens per forward": "tokens per\nforward",
    "confidence threshold": "confidence\nthreshold",
    "entropy bound": "entropy\nbound",
}


def table(report: Report) -> Table:
    """The header and the rows, as text: a row a task, and in a sweep a row a setting and task."""
    if isinstance(report, EvaluationReport):
        return ("task", *_FIGURES), tuple((one.task, *_figures(one)) for one in report.results)
    axes = tuple(values(report.plan, report.sweep.axes)) or ("settings",)
    rows = tuple(
        (one.task, *_setting(row, report), *_figures(one))
        for row in _by_task(report)
        for one in row.results
    )
    return ("task", *axes, *_FIGURES), rows


def text(report: Report) -> str:
    """The table for a terminal, its lines as long as they must be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    header, rows = table(report)
    first_figure = len(header) - len(_FIGURES)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, name in enumerate(header):
        side: Literal["left", "right"] = "right" if column >= first_figure else "left"
        drawn.add_column(_NARROW.get(name, name), justify=side, no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    width = 4 * len(header) + sum(map(max, zip(*_lengths(header, rows), strict=True)))
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def markdown(report: Report, facts: Facts) -> str:
    """The table and, below it, the line that says how the figures came about."""
    header, rows = table(report)
    left = len(header) - len(_FIGURES)
    marks = ["---"] * left + ["---:"] * len(_FIGURES)
    lines = [_line(header), _line(marks), *(_line(row) for row in rows)]
    return "\n".join([*lines, "", provenance(report, facts), ""])


def provenance(report: Report, facts: Facts) -> str:
    """Date, commit, machine and settings behind the figures, in one sentence each."""
    plan = report.plan
    results, swept = (
        (report.results, ())
        if isinstance(report, EvaluationReport)
        else (report.rows[0].results, report.sweep.axes)
    )
    counts = sorted({one.examples for one in results})
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    revision = f" revision {facts.revision}" if facts.revision else ""
    return (
        f"Measured on {facts.date[:10]}: model {facts.model}{revision} in {facts.dtype}, sfumato "
        f"{facts.sfumato} (commit {facts.commit}), torch {facts.torch}, {facts.processor}, "
        f"{facts.threads} threads of {facts.cores} cores, {facts.device}. {asked} examples a task, "
        f"seed {plan.seed}, batches of {plan.batch_size}, {_settings(plan, swept)}."
    )


def to_json(report: Report, facts: Facts) -> dict[str, Any]:
    """The report as JSON values; the fields are the same for every report of a kind."""
    kind = "evaluation" if isinstance(report, EvaluationReport) else "sweep"
    head = {
        "schema": SCHEMA,
        "kind": kind,
        "model": facts.model,
        "checkpoint": {"folder": facts.checkpoint, "revision": facts.revision},
        "commit": facts.commit,
        "date": facts.date,
        "machine": {
            name: getattr(facts, name)
            for name in ("system", "processor", "cores", "threads", "device")
        },
        "versions": {name: getattr(facts, name) for name in ("sfumato", "torch", "python")},
        "dtype": facts.dtype,
        "seed": report.plan.seed,
        "batch_size": report.plan.batch_size,
        **_decoding(report.plan),
    }
    if isinstance(report, EvaluationReport):
        failures = [dataclasses.asdict(one) for one in report.failures]
        return {**head, "results": _results(report.results), "failures": failures}
    rows = [{**_decoding(row.plan), "results": _results(row.results)} for row in report.rows]
    return {**head, "sweep": _jsonable(dataclasses.asdict(report.sweep)), "rows": rows}


def _results(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in results]


def _decoding(plan: Plan) -> dict[str, Any]:
    return {"mode": plan.mode, "settings": _jsonable(dataclasses.asdict(plan.generation))}


def _jsonable(value: Any) -> Any:
    """`value` with tuples as the lists that JSON makes of them."""
    if isinstance(value, dict):
        return {name: _jsonable(one) for name, one in value.items()}
    return [_jsonable(one) for one in value] if isinstance(value, tuple | list) else value


def _figures(one: TaskResult) -> tuple[str, ...]:
    return (
        f"{one.solved:,} of {one.examples:,}",
        f"{100 * one.accuracy:.1f} %",
        f"{100 * one.low:.1f}-{100 * one.high:.1f}",
        "-" if one.steps_per_canvas is None else f"{one.steps_per_canvas:.1f}",
        f"{one.tokens_per_forward:.1f}",
        f"{one.tokens_per_second:,.0f}",
        f"{one.seconds:,.1f}",
    )


def _by_task(report: SweepReport) -> list[SweepRow]:
    """A row for each task and setting, the settings of one task together."""
    tasks = range(len(report.rows[0].results))
    return [SweepRow(row.plan, (row.results[task],)) for task in tasks for row in report.rows]


def _setting(row: SweepRow, report: SweepReport) -> tuple[str, ...]:
    cells = tuple(values(row.plan, report.sweep.axes).values()) or ("unchanged",)
    if row.plan.mode == "autoregressive":
        return ("autoregressive", *("-" for _ in cells[1:]))
    return cells


def _settings(plan: Plan, swept: Sequence[str]) -> str:
    """The decoder's settings in words, without those that the rows name."""
    config: GenerationConfig = plan.generation
    if plan.mode == "autoregressive":
        way = f"sampled at {config.temperature:g}" if config.do_sample else "greedy"
        return f"autoregressive, {way}"
    said = {
        "max_denoising_steps": f"at most {config.max_denoising_steps} steps",
        "entropy_bound": f"entropy bound {config.entropy_bound:g}",
        "temperatures": f"temperature {config.t_max:g} to {config.t_min:g}",
        "confidence_threshold": f"confidence threshold {config.confidence_threshold:g}",
        "stability_threshold": f"stability threshold {config.stability_threshold}",
    }
    if config.restart_steps is not None:
        said["restart_steps"] = f"anew after {config.restart_steps}"
    return ", ".join(words for name, words in said.items() if name not in swept)


def _line(cells: Sequence[str]) -> str:
    # Names of a caller's own tasks may hold what Markdown takes for a column's end.
    safe = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(safe)} |"


def _lengths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    from rich.cells import cell_len

    return [[cell_len(cell) for cell in line] for line in (header, *rows)]
