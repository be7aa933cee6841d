"""A benchmark as tables for the terminal, row by row as it goes, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Literal

from sfumato.benchmark.ceilings import Ceilings
from sfumato.benchmark.compare import Comparison
from sfumato.benchmark.counting import PARTS, denoise_work
from sfumato.benchmark.run import Benchmark, Plan, Result

SCHEMA = 1  # raised when a field of the JSON changes its meaning or goes
_GIGA = 1e9
_QUIET_CORES = 0.1  # what others may take before the report says so
Rows = list[tuple[str, ...]]


class Tables:
    """The tables of a plan, row by row as its figures come.

    What is the same in every row is left to the title.
    """

    def __init__(self, plan: Plan) -> None:
        self._swept = [
            name
            for name, values in (("threads", plan.threads), ("rows", plan.batches))
            if len(values) > 1
        ]
        self._results: list[Result] = []
        self._comparisons: list[Comparison] = []
        self._in_table = False

    def add(self, found: Ceilings | Comparison | Result) -> str | None:
        """The lines to show for `found`, None for what comes at the end."""
        if isinstance(found, Comparison):
            self._comparisons.append(found)
            return None
        if isinstance(found, Ceilings):
            self._in_table = False
            return f"\n{_ceilings(found)}"
        self._results.append(found)
        row = _in_columns(self._row(found))
        if self._in_table:
            return row
        self._in_table = True
        columns = [*_COLUMNS[:1], *(("", name) for name in self._swept), *_COLUMNS[1:]]
        above = _in_columns([first for first, _ in columns])
        return "\n".join(["", above, _in_columns([name for _, name in columns]), row])

    def end(self) -> str:
        """The lines to show when all has been measured; nothing if there are none."""
        remarks = _remarks(self._results)
        return "\n".join(f"\n{one}" for one in [*map(_comparison, self._comparisons), *remarks])

    def _row(self, one: Result) -> list[str]:
        seconds = one.timing.seconds
        swept = {"threads": str(one.threads), "rows": str(one.batch)}
        return [
            one.part,
            *(swept[name] for name in self._swept),
            f"{one.context:,}",
            duration(seconds.median),
            f"{100 * seconds.spread:.0f} %",
            f"{one.rate / _GIGA:,.1f}",
            _or_dash(one.operations_share, lambda share: f"{100 * share:.0f} %"),
            f"{one.read / _GIGA:,.1f}",
            _or_dash(one.read_share, lambda share: f"{100 * share:.0f} %"),
            _or_dash(one.timing.peak_bytes, _size),
        ]


# What a column is called, in two lines.
_COLUMNS = (
    ("", "part"), ("", "cached"), ("", "median"), ("", "±"), ("", "GFLOP/s"), ("of", "ceiling"),
    ("weights", "GB/s"), ("of", "memory"), ("peak", "memory"),
)  # fmt: skip
_PART_WIDTH, _WIDTH = 30, 9


def _in_columns(cells: Sequence[str]) -> str:
    row = "".join(f"{cell:>{_WIDTH}}" for cell in cells[1:])
    return f"{cells[0]:<{_PART_WIDTH}}{row}".rstrip()


def to_json(benchmark: Benchmark, head: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON values; `head` names model, machine and versions."""
    plan, config = benchmark.plan, benchmark.config
    work = denoise_work(config, 1, 0, dense_soft_embeddings=True)
    return {
        "schema": SCHEMA,
        "kind": "benchmark",
        **head,
        "weight_bytes": benchmark.weight_bytes,
        "kernels": benchmark.kernels,
        "canvas_length": config.canvas_length,
        "plan": {
            "parts": list(plan.parts),
            "prompts": list(plan.prompts_of(config)),
            "contexts": list(plan.contexts),
            "batches": list(plan.batches),
            "threads": list(plan.threads),
            "steps_per_canvas": plan.steps_per_canvas,
            **dataclasses.asdict(plan.effort),
        },
        "gflop_of_a_denoising_step": {name: work[name].operations / _GIGA for name in PARTS},
        "ceilings": [_ceiling_json(one) for one in benchmark.ceilings],
        "results": [_result_json(one) for one in benchmark.results],
        "comparisons": [_comparison_json(one) for one in benchmark.comparisons],
    }


def _ceiling_json(ceilings: Ceilings) -> dict[str, Any]:
    rates = {
        f"{name.replace(' ', '_')}_gflops": None if rate is None else rate / _GIGA
        for name, rate in ceilings.operations.items()
    }
    read = ceilings.read / _GIGA
    return {"threads": ceilings.threads, **rates, "read_gbs": read, "reasons": ceilings.reasons}


def _result_json(result: Result) -> dict[str, Any]:
    timing = result.timing
    return {
        "part": result.part,
        "threads": result.threads,
        "batch": result.batch,
        "context": result.context,
        "tokens": result.tokens,
        "seconds": dataclasses.asdict(timing.seconds),
        "gflop": result.operations / _GIGA,
        "gflops": result.rate / _GIGA,
        "ceiling_share": result.operations_share,
        "weight_bytes": result.weight_bytes,
        "weight_gbs": result.read / _GIGA,
        "read_share": result.read_share,
        "peak_bytes": timing.peak_bytes,
        "extra_bytes": timing.extra_bytes,
        "others_cores": timing.others_cores,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    found = dataclasses.asdict(comparison)
    return {**found, "answers": list(found["answers"])}


def _ceilings(ceilings: Ceilings) -> str:
    known = {name: rate for name, rate in ceilings.operations.items() if rate is not None}
    rates = ", ".join(f"{name} {rate / _GIGA:,.0f} GFLOP/s" for name, rate in known.items())
    head = (
        f"Ceilings through torch, threads {ceilings.threads}: {rates}, memory read "
        f"{ceilings.read / _GIGA:,.1f} GB/s"
    )
    return "\n".join([head, *(f"{name}: {why}" for name, why in ceilings.reasons.items())])


def _comparison(comparison: Comparison) -> str:
    costs = comparison.costs
    head = (
        f"Diffusion against left to right: threads {comparison.threads}, rows {costs.rows}, "
        f"cached {comparison.context:,}, {comparison.steps} steps a canvas of {costs.length}"
    )
    rows: Rows = [
        (
            f"{one.tokens:,}",
            f"{one.diffusion_rate:,.1f}",
            f"{one.autoregressive_rate:,.1f}",
            one.quicker,
        )
        for one in comparison.answers
    ]
    header = ("answer", "diffusion tokens/s", "autoregressive tokens/s", "quicker")
    return "\n".join([head, _draw(header, rows, 0), _verdict(comparison)])


def _verdict(comparison: Comparison) -> str:
    """Who wins from where on, in a sentence or two."""
    first, always = comparison.wins_from, comparison.wins_always_from
    if first is None:
        said = "Left to right is quicker for every answer."
    elif always is None:
        said = f"Diffusion wins some answers from {first:,} tokens on, left to right the long run."
    elif always == first:
        said = f"Diffusion wins from {first:,} tokens on."
    else:
        said = f"Diffusion wins some answers from {first:,} tokens, and all from {always:,} on."
    if comparison.least_tokens_per_forward is None:
        return f"{said}\nOne step a canvas would still be too slow."
    return (
        f"{said}\nIt wins whole canvases of up to {comparison.most_steps:,} steps, which is "
        f"{comparison.least_tokens_per_forward:.1f} tokens per forward or more."
    )


def _remarks(results: Sequence[Result]) -> list[str]:
    """What a reader of the figures must know."""
    busy = spent = 0.0
    for one in results:
        seconds = one.timing.seconds.median * one.timing.seconds.samples
        if one.timing.others_cores is not None:
            busy, spent = busy + one.timing.others_cores * seconds, spent + seconds
    if spent <= 0 or busy / spent < _QUIET_CORES:
        return []
    load = f"Other processes kept {busy / spent:.1f} cores busy meanwhile"
    return [f"{load}: these times are longer than the machine's own."]


def duration(seconds: float) -> str:
    """`seconds` with three figures in the unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds / 1e-6:.3g} µs"


def _size(count: float) -> str:
    return f"{count / _GIGA:.2f} GB"


def _or_dash(value: float | None, form: Any) -> str:
    return "-" if value is None else str(form(value))


def _draw(header: Sequence[str], rows: Rows, left: int) -> str:
    """A table, its lines as long as they must be; the first `left` columns are words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, name in enumerate(header):
        side: Literal["left", "right"] = "left" if column < left else "right"
        drawn.add_column(name, justify=side, no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    width = 4 * len(header) + sum(
        max(map(len, column)) for column in zip(header, *rows, strict=True)
    )
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
