"""`sfumato bench`: how fast the passes are, and what share of the machine that is."""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.checkpoint import config_folder, display_name
from sfumato.cli.failures import one_line
from sfumato.cli.fit import needed_bytes
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.machine import look_at_machine, usable_cores
from sfumato.cli.options import MODEL_HELP, ModelOptions, chosen_model
from sfumato.cli.terminal import human_bytes, print_json, say
from sfumato.config.fields import short
from sfumato.errors import UsageError
from sfumato.settings import Settings

if TYPE_CHECKING:
    from sfumato.api import Model
    from sfumato.benchmark.ceilings import Ceilings
    from sfumato.benchmark.compare import Comparison
    from sfumato.benchmark.report import Tables
    from sfumato.benchmark.run import Benchmark, Plan, Result
    from sfumato.config.model import ModelConfig
    from sfumato.evaluation.facts import Facts
    from sfumato.model.diffusion_gemma import DiffusionGemma

ERASE_LINE = "\r\x1b[2K"
CONTEXT, PROMPTS = 256, "32,256,1K"
REPEATS, SECONDS, STEPS_PER_CANVAS = 5, 0.5, 12
MAX_LENGTH = 1 << 24  # what a configuration may at most call its context
MAX_BATCH, MAX_REPEATS, MAX_SECONDS, MAX_STEPS = 1024, 10_000, 3600.0, 10_000
MAX_VALUES = 32  # of one sweep
_NUMBER = re.compile(r"([0-9]{1,9})([kK]?)")


@dataclass(frozen=True)
class WorkOptions:
    """What is measured, and how long."""

    shape: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Random weights instead of a model: small, released, or released:4 for that many "
            "layers at released widths.",
        ),
    ] = None
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="PART,...",
            help="Of ceilings, encode, denoise, head, step, autoregressive. All if left out.",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=f"Lengths of prompts to encode; {PROMPTS} as far as the model holds them.",
        ),
    ] = None
    context: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help=f"Cached positions, as 1K,8K; {CONTEXT} if left out."),
    ] = None
    batch: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Rows at once; 1 if left out.")
    ] = None
    threads: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Threads, up to the cores there are.")
    ] = None
    steps_per_canvas: Annotated[
        int,
        typer.Option(
            metavar="N", help="Denoising steps a canvas takes, for the comparison of the modes."
        ),
    ] = STEPS_PER_CANVAS
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Measure each part at least so often.")
    ] = REPEATS
    seconds: Annotated[
        float, typer.Option(metavar="X", help="Measure each part at least so long.")
    ] = SECONDS

    def check(self) -> None:
        """Raise UsageError for what no model could make good, before anything heavy is loaded."""
        _in_range("--repeats", self.repeats, 1, MAX_REPEATS)
        _in_range("--steps-per-canvas", self.steps_per_canvas, 1, MAX_STEPS)
        if not (math.isfinite(self.seconds) and 0 <= self.seconds <= MAX_SECONDS):
            raise UsageError(f"--seconds must be from 0 to {MAX_SECONDS:g}, not {self.seconds}")
        for name, limit in _LISTS.items():
            numbers(f"--{name}", getattr(self, name), limit())

    def plan(self) -> Plan:
        """What the options come to. Raises UsageError for a part that there is not."""
        import torch

        from sfumato.benchmark.run import PARTS, Plan
        from sfumato.benchmark.timing import Effort

        threads = Settings.from_environment().threads or torch.get_num_threads()
        return Plan(
            contexts=numbers("--context", self.context, MAX_LENGTH) or (CONTEXT,),
            threads=numbers("--threads", self.threads, usable_cores()) or (threads,),
            batches=numbers("--batch", self.batch, MAX_BATCH) or (1,),
            prompts=numbers("--prompt", self.prompt, MAX_LENGTH) or None,
            parts=PARTS if self.parts is None else _words("--parts", self.parts),
            steps_per_canvas=self.steps_per_canvas,
            effort=Effort(self.repeats, self.seconds),
        )


_LISTS: dict[str, Callable[[], int]] = {
    "prompt": lambda: MAX_LENGTH,
    "context": lambda: MAX_LENGTH,
    "batch": lambda: MAX_BATCH,
    "threads": usable_cores,
}


@dataclass(frozen=True)
class ReportOptions:
    """Where the report goes."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as JSON.")
    ] = None
    commit: Annotated[
        str, typer.Option(metavar="HASH", help="The commit to name in the report.")
    ] = "unknown"


def bench(
    work: WorkOptions,
    options: ModelOptions,
    reporting: ReportOptions,
    checkpoint: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
) -> None:
    """Measure how fast a model is on this machine.

    First the machine's own ceilings: matrix products and memory. Then encode, a denoising step
    without and with self-conditioning, the head, and whole steps of the loop; each as median
    and spread, operations a second and their share of the ceiling, weights read a second, peak
    memory. Last, diffusion against the autoregressive mode: who is quicker for which answers.

    Each figure is shown as soon as it is there. Nothing else should run meanwhile; the report
    says what others took.
    """
    work.check()
    if checkpoint is not None and options.model is not None:
        raise UsageError("two models are named", hint="give MODEL or --model, not both")
    named = checkpoint if checkpoint is not None else options.model
    if work.shape is not None and named is not None:
        raise UsageError(
            "--shape stands in for a model, and one is named", hint="give one of the two"
        )
    if reporting.output is not None:
        from sfumato.evaluation.files import check_target

        check_target(reporting.output)
    with leaving_at_once():
        from sfumato.benchmark.report import Tables
        from sfumato.benchmark.run import run
        from sfumato.evaluation.facts import gather

    plan = work.plan()
    model, name = _model(work.shape, dataclasses.replace(options, model=named), plan)
    facts = gather(model, name, reporting.commit)
    progress = Progress(None if reporting.as_json else Tables(plan))
    if not reporting.as_json:
        say(title(facts, model.network, plan))
    try:
        found = run(model.network, plan, progress.tell, progress.show)
    finally:
        progress.erase()
    _publish(found, facts, progress.tables, reporting)


def _model(shape: str | None, options: ModelOptions, plan: Plan) -> tuple[Model, str]:
    """The model to measure and what reports call it, checked against the plan before it is made."""
    if shape is not None:
        return _random(shape, options, plan), f"shape {shape}, random weights"
    from sfumato.cli.dialogue import Dialogue
    from sfumato.config.parse import load_config

    name = chosen_model(options.model)
    plan.check(load_config(config_folder(name)))
    dialogue = Dialogue.load(options)
    return dialogue.model, display_name(name)


def _random(shape: str, options: ModelOptions, plan: Plan) -> Model:
    from sfumato.benchmark.shapes import default_dtype, named_shape, random_model
    from sfumato.ops.kernels import AUTO, check_activations, choose
    from sfumato.weights.loader import DTYPES

    config = named_shape(shape)
    plan.check(config)
    dtype = default_dtype(shape) if options.dtype is None else options.dtype
    if dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, not {short(dtype)}")
    if options.device == "cpu":
        _check_fits(shape, config, dtype, plan)
    settings = Settings.from_environment()
    wanted = settings.kernels
    if check_activations(options.activations or settings.activations):
        raise UsageError(
            "activations in 8 bits need weights in NVFP4, which a named shape has not",
            hint="write a checkpoint: python benchmarks/random_checkpoint.py DIR SHAPE --nvfp4",
        )
    # As `load` has it: whoever asks for fp32 gets torch's bits, unless kernels are asked for too.
    exact = options.dtype == "float32" and wanted == AUTO
    return random_model(config, dtype, options.device, kernels=None if exact else choose(wanted))


def _check_fits(shape: str, config: ModelConfig, dtype: str, plan: Plan) -> None:
    """Raise UsageError if the memory there is cannot hold what the plan needs."""
    machine = look_at_machine(Path.cwd())
    there = machine.memory_available or machine.memory
    if there is None or (needed := memory_needed(config, dtype, plan)) <= there:
        return
    raise UsageError(
        f"shape {short(shape)} in {dtype} needs about {human_bytes(needed)} of memory, and "
        f"{human_bytes(there)} is available",
        hint=_smaller(shape, dtype, plan, there),
    )


def memory_needed(config: ModelConfig, dtype: str, plan: Plan) -> int:
    """Bytes for weights, cache and one canvas's logits, roughly and rather too little."""
    from sfumato.benchmark.counting import cache_values
    from sfumato.weights.inventory import take_inventory

    size = 4 if dtype == "float32" else 2
    rows = max(plan.batches)
    cache = rows * cache_values(config, max(plan.contexts)) * size
    logits = rows * config.canvas_length * config.text.vocab_size * (4 + size)
    return needed_bytes(take_inventory(config).all * size) + cache + logits


def _smaller(shape: str, dtype: str, plan: Plan, there: int) -> str:
    """What to ask for instead."""
    from sfumato.benchmark.shapes import RELEASED_LAYERS, named_shape

    if not shape.startswith("released"):
        return "ask for fewer rows or a shorter context"
    fits = bisect.bisect_right(
        range(1, RELEASED_LAYERS + 1),
        there,
        key=lambda layers: memory_needed(named_shape(f"released:{layers}"), dtype, plan),
    )
    if not fits:
        return "not even one layer fits: ask for fewer rows or a shorter context"
    return f"--shape released:{fits} fits: that many of its layers, at the same widths"


@dataclass(frozen=True)
class Progress:
    """What is seen while a benchmark runs: its tables' rows, and on a terminal what comes next."""

    tables: Tables | None  # None: the report will be one JSON object

    def tell(self, part: str) -> None:
        """One line on stderr that each part writes anew, if somebody is there to see it."""
        self.erase()
        if sys.stderr.isatty():
            print(f"measuring {one_line(part)}", end="", file=sys.stderr, flush=True)

    def show(self, found: Ceilings | Comparison | Result) -> None:
        """What was found, on stdout."""
        if self.tables is not None and (lines := self.tables.add(found)) is not None:
            self.erase()
            say(lines)

    def erase(self) -> None:
        """Take the line away."""
        if sys.stderr.isatty():
            print(ERASE_LINE, end="", file=sys.stderr, flush=True)


def _publish(found: Benchmark, facts: Facts, tables: Tables | None, options: ReportOptions) -> None:
    from sfumato.benchmark import report as reports
    from sfumato.evaluation.files import write_text

    as_json = reports.to_json(found, head(facts))
    if options.output is not None:
        text = json.dumps(as_json, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(options.output, text + "\n")
    if tables is None:
        print_json(as_json)
    elif end := tables.end():
        say(end)


def head(facts: Facts) -> dict[str, Any]:
    """Model, machine and versions as JSON values, as in the reports of `sfumato eval`."""
    return {
        "model": facts.model,
        "checkpoint": {"folder": facts.checkpoint, "revision": facts.revision},
        "commit": facts.commit,
        "date": facts.date,
        "machine": {
            name: getattr(facts, name) for name in ("system", "processor", "cores", "device")
        },
        "versions": {name: getattr(facts, name) for name in ("sfumato", "torch", "python")},
        "dtype": facts.dtype,
    }


def title(facts: Facts, network: DiffusionGemma, plan: Plan) -> str:
    """What is measured and where, above the tables."""
    from sfumato.benchmark.run import kernels_of, stored_bytes

    threads, rows = ", ".join(map(str, plan.threads)), ", ".join(map(str, plan.batches))
    kernels = kernels_of(network)
    return (
        f"{facts.model} in {facts.dtype}, {human_bytes(sum(stored_bytes(network).values()))} of "
        f"weights; threads {threads}, rows {rows}\n"
        f"{facts.processor}, {facts.cores} cores, {facts.device}, "
        f"{'torch alone' if kernels is None else f'kernels {kernels}'}; "
        f"sfumato {facts.sfumato} "
        f"(commit {facts.commit}), torch {facts.torch}, {facts.date[:10]}"
    )


def numbers(option: str, text: str | None, limit: int) -> tuple[int, ...]:
    """The numbers in a list as 1,2 or 1K,8K; none if it is not given. Raises UsageError."""
    if text is None:
        return ()
    values = []
    for part in text.split(","):
        found = _NUMBER.fullmatch(part.strip())
        if found is None:
            raise UsageError(
                f"{option} wants whole numbers separated by commas, as 1,2 or 1K, not {text[:60]!r}"
            )
        values.append(int(found[1]) * (1024 if found[2] else 1))
        _in_range(option, values[-1], 1, limit)
    _no_more_than_once(option, values)
    return tuple(values)


def _words(option: str, text: str) -> tuple[str, ...]:
    words = [part.strip() for part in text.split(",")]
    _no_more_than_once(option, words)
    return tuple(words)


def _no_more_than_once(option: str, values: list[Any]) -> None:
    if len(set(values)) < len(values):
        raise UsageError(f"{option} names a value twice")
    if len(values) > MAX_VALUES:
        raise UsageError(f"{option} takes {MAX_VALUES} values at most, not {len(values)}")


def _in_range(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} must be from {low} to {high:,}, not {short(value)}")
