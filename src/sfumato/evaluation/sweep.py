"""One evaluation a setting of the decoder, on equal examples with equal seeds."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Literal

from sfumato.api import Model
from sfumato.config.generation import GenerationConfig
from sfumato.errors import EvaluationError
from sfumato.evaluation.metrics import TaskResult
from sfumato.evaluation.run import (
    OnProgress,
    Plan,
    Progress,
    evaluate_rendered,
    render,
)
from sfumato.evaluation.task_sets import Work, task_sets

Design = Literal["cartesian", "one-at-a-time"]
AXES = ("max_denoising_steps", "entropy_bound", "confidence_threshold", "temperatures")


@dataclass(frozen=True)
class Sweep:
    """Values to try for the decoder's settings; an empty axis keeps what the checkpoint says.

    `temperatures` are pairs (t_min, t_max). A cartesian design tries every combination;
    one-at-a-time tries the unchanged settings and each value with the others unchanged.
    `autoregressive` adds a row of the same weights left to right, the baseline.
    """

    max_denoising_steps: tuple[int, ...] = ()
    entropy_bound: tuple[float, ...] = ()
    confidence_threshold: tuple[float, ...] = ()
    temperatures: tuple[tuple[float, float], ...] = ()
    design: Design = "cartesian"
    autoregressive: bool = False

    def __post_init__(self) -> None:
        if self.design not in ("cartesian", "one-at-a-time"):
            raise EvaluationError(
                f"a sweep is cartesian or one-at-a-time, not {self.design!r}",
            )
        for axis in AXES:
            values = getattr(self, axis)
            if len(set(values)) < len(values):
                raise EvaluationError(f"the sweep's {axis} names a value twice: {list(values)}")

    @property
    def axes(self) -> tuple[str, ...]:
        """The settings that this sweep changes."""
        return tuple(axis for axis in AXES if getattr(self, axis))

    def settings(self, base: GenerationConfig) -> tuple[GenerationConfig, ...]:
        """`base` with each change of the sweep, no setting twice.

        Raises InputError for a value that decoding cannot take.
        """
        changes: list[dict[str, Any]]
        if self.design == "cartesian":
            values = [[_change(axis, value) for value in getattr(self, axis)] for axis in self.axes]
            changes = [_merged(one) for one in itertools.product(*values)]
        else:
            changes = [{}]
            changes += [_change(axis, v) for axis in self.axes for v in getattr(self, axis)]
        return tuple(dict.fromkeys(base.replace(**one) for one in changes))


@dataclass(frozen=True)
class SweepRow:
    """One setting and the results of every task under it."""

    plan: Plan
    results: tuple[TaskResult, ...]


@dataclass(frozen=True)
class SweepReport:
    """All rows of a sweep, in the order of its settings; `plan` is what was not changed."""

    sweep: Sweep
    plan: Plan
    rows: tuple[SweepRow, ...]


def run_sweep(
    model: Model,
    work: Work,
    sweep: Sweep,
    n: int = 1000,
    seed: int = 0,
    generation: GenerationConfig | None = None,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> SweepReport:
    """`evaluate` once a setting of `sweep`, over `generation` or the checkpoint's settings.

    Every setting is asked the same examples with the same seeds, so that the rows are paired.
    Raises EvaluationError and InputError, for settings before the first example is asked.
    """
    base = Plan(generation or model.generation_config, "diffusion", seed, batch_size)
    plans = [dataclasses.replace(base, generation=one) for one in sweep.settings(base.generation)]
    if sweep.autoregressive:
        plans.append(dataclasses.replace(base, mode="autoregressive"))
    rendered = render(model, task_sets(work, n, seed))
    rows = []
    for plan in plans:
        report = evaluate_rendered(model, rendered, plan, _named(on_progress, label(plan, sweep)))
        rows.append(SweepRow(plan, report.results))
    return SweepReport(sweep, base, tuple(rows))


def label(plan: Plan, sweep: Sweep) -> str:
    """The row's name: its value on each axis of the sweep."""
    if plan.mode == "autoregressive":
        return "autoregressive"
    return ", ".join(f"{name} {value}" for name, value in values(plan, sweep.axes).items())


WORDS = {
    "max_denoising_steps": "steps",
    "entropy_bound": "entropy bound",
    "confidence_threshold": "confidence threshold",
    "temperatures": "temperature",
}


def values(plan: Plan, axes: tuple[str, ...]) -> dict[str, str]:
    """What `plan` has on each of `axes`, in words."""
    found = {}
    for axis in axes:
        if axis == "temperatures":
            found[WORDS[axis]] = f"{plan.generation.t_max:g} to {plan.generation.t_min:g}"
        else:
            found[WORDS[axis]] = f"{getattr(plan.generation, axis):g}"
    return found


def _change(axis: str, value: Any) -> dict[str, Any]:
    if axis != "temperatures":
        return {axis: value}
    t_min, t_max = value
    return {"t_min": t_min, "t_max": t_max}


def _merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _named(on_progress: OnProgress | None, setting: str) -> OnProgress | None:
    if on_progress is None:
        return None

    def tell(progress: Progress) -> None:
        on_progress(dataclasses.replace(progress, setting=setting))

    return tell
