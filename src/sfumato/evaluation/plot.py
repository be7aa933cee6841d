"""The curve of a sweep: quality against steps per canvas, with the interval of every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sfumato.errors import EvaluationError
from sfumato.evaluation.files import check_target, write_whole
from sfumato.evaluation.metrics import TaskResult
from sfumato.evaluation.sweep import SweepReport, label, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
STEPS = "max_denoising_steps"


@dataclass(frozen=True)
class Curve:
    """Points of one task that differ in their steps alone, or in all the sweep changed."""

    name: str
    points: tuple[TaskResult, ...]


def check_plot(path: str | Path) -> Path:
    """`path` if a plot can be drawn and written there.

    Raises EvaluationError for another suffix than .svg and .png, for a folder that is not there,
    and where matplotlib is not installed: ask before the sweep runs.
    """
    path = check_target(path)
    if path.suffix.lower() not in SUFFIXES:
        raise EvaluationError(
            f"a plot cannot be written as {path.name!r}", hint="name it .svg or .png"
        )
    _figure_class()
    return path


def write_plot(report: SweepReport, path: str | Path) -> Path:
    """Draw `report` into `path`. Raises EvaluationError as `check_plot` does."""
    path = check_plot(path)
    figure = _draw(report, _figure_class())
    kind = path.suffix.lower().removeprefix(".")
    # No date inside: equal reports give equal files.
    metadata = {"Date": None} if kind == "svg" else {}

    def save(file: BinaryIO) -> None:
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "sfumato"}):
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)

    return write_whole(path, save)


def curves(report: SweepReport) -> tuple[Curve, ...]:
    """The report's points in diffusion mode: a curve a task and setting other than the steps."""
    others = tuple(axis for axis in report.sweep.axes if axis != STEPS)
    if STEPS not in report.sweep.axes or report.sweep.design == "one-at-a-time":
        others = ()  # one curve a task, through all that was tried
    found: dict[str, list[TaskResult]] = {}
    for row in report.rows:
        if row.plan.mode == "autoregressive":
            continue
        setting = [f"{name} {value}" for name, value in values(row.plan, others).items()]
        for one in row.results:
            found.setdefault(", ".join([one.task, *setting]), []).append(one)
    tasks = [one.task for one in report.rows[0].results]
    return tuple(
        Curve(name, tuple(sorted(points, key=lambda one: one.steps_per_canvas or 0.0)))
        for name, points in sorted(found.items(), key=lambda pair: tasks.index(pair[1][0].task))
    )


def _figure_class() -> Callable[..., Figure]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as problem:
        raise EvaluationError(
            "a plot needs matplotlib, which is not installed",
            hint="pip install 'sfumato[train]'",
        ) from problem
    return Figure


def _draw(report: SweepReport, figure_class: Callable[..., Figure]) -> Figure:
    figure = figure_class(figsize=(7.2, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    colors: dict[str, Any] = {}
    for number, curve in enumerate(curves(report)):
        color = f"C{number % 10}"
        colors.setdefault(curve.points[0].task, color)
        axes.errorbar(
            [one.steps_per_canvas or 0.0 for one in curve.points],
            [100 * one.accuracy for one in curve.points],
            yerr=_bars(curve.points),
            color=color,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=curve.name,
        )
    for row in report.rows:
        if row.plan.mode == "autoregressive":
            for one in row.results:
                _baseline(axes, one, colors[one.task], label(row.plan, report.sweep))
    examples = max(one.examples for row in report.rows for one in row.results)
    axes.set_title(f"{examples:,} examples a point, 95 % intervals", fontsize=10)
    axes.set_xlabel("denoising steps per canvas (mean)")
    axes.set_ylabel("solved, %")
    axes.set_xlim(left=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _bars(points: tuple[TaskResult, ...]) -> tuple[list[float], list[float]]:
    below = [100 * (one.accuracy - one.low) for one in points]
    above = [100 * (one.high - one.accuracy) for one in points]
    return below, above


def _baseline(axes: Axes, one: TaskResult, color: Any, name: str) -> None:
    """A row without canvases has no place on the axis of steps: a line with its interval."""
    axes.axhline(
        100 * one.accuracy, color=color, linestyle="--", linewidth=1, label=f"{one.task}, {name}"
    )
    axes.axhspan(100 * one.low, 100 * one.high, color=color, alpha=0.08)
