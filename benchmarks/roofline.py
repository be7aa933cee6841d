"""Compute for docs/performance.md what published figures of four machines allow.

Usage: python benchmarks/roofline.py [--check]

Nothing is measured. A part of a pass takes at least the time of its arithmetic at the machine's
rate and the time of reading its weights and cache once; the longer of the two is its bound, and a
pass's bound is the sum over its parts. Without --check the computed section of the page is written
anew; with it, 1 is the exit code of a page that is not what would be written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sfumato.benchmark import counting
from sfumato.benchmark.counting import Parts, Work
from sfumato.benchmark.shapes import named_shape
from sfumato.weights.inventory import Inventory, take_inventory

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN = "<!-- computed: python benchmarks/roofline.py -->\n"
END = "<!-- end of what is computed -->\n"
CONTEXT = 1024
BATCHES = (1, 2, 4, 8, 16)
TOKENS_PER_FORWARD = (4, 8, 12, 16, 20)
USUAL = 16  # tokens per forward, for the table by rows
SHAPE = named_shape("released")
TERA, GIGA, MILLI = 1e12, 1e9, 1e-3


@dataclass(frozen=True)
class Machine:
    """Published figures: dense operations a second by format, bytes a second, bytes of memory."""

    name: str
    bf16: float
    eight: float  # FP8, or whole numbers of 8 bits on a processor
    four: float | None  # FP4; None: weights of 4 bits are multiplied in bf16
    bandwidth: float
    memory: float
    source: str


@dataclass(frozen=True)
class Format:
    """How the matrices of the text layers are stored and multiplied.

    The embedding table, which is the head, the router and the cache stay in bf16.
    """

    name: str
    value_bytes: float
    rate: Callable[[Machine], float]


# 16 cores of two 512-bit units at the base clock: a cycle is 128 operations in bf16, 256 in 8 bits.
_DESKTOP_CYCLES = 16 * 4.3e9
MACHINES = (
    Machine(
        "H100 SXM", 989.4 * TERA, 1978.9 * TERA, None, 3.35 * TERA, 80 * GIGA,
        "NVIDIA H100 data sheet, half of the rates it gives with sparsity",
    ),
    Machine(
        "H200", 989.4 * TERA, 1978.9 * TERA, None, 4.8 * TERA, 141 * GIGA,
        "NVIDIA H200 data sheet, half of the rates it gives with sparsity",
    ),
    Machine(
        "RTX 5090", 209.5 * TERA, 419 * TERA, 1676 * TERA, 1.792 * TERA, 32 * GIGA,
        "NVIDIA RTX Blackwell white paper, dense, sums in fp32",
    ),
    Machine(
        "16-core desktop", 128 * _DESKTOP_CYCLES, 256 * _DESKTOP_CYCLES, None, 89.6 * GIGA,
        64 * GIGA,
        "AMD Ryzen 9 9950X: 4.3 GHz base clock times the width of its vector units; two channels "
        "of DDR5-5600; 64 GB assumed",
    ),
)  # fmt: skip
FORMATS = (
    Format("BF16", 2, lambda machine: machine.bf16),
    Format("8 bits", 1, lambda machine: machine.eight),
    Format("NVFP4", 0.5625, lambda machine: machine.four or machine.bf16),
)
_BF16 = Format("BF16", 2, lambda machine: machine.bf16)
_STAY = (counting.HEAD, counting.ROUTER, counting.ATTENTION)


def bound(part: str, work: Work, machine: Machine, form: Format) -> tuple[float, float]:
    """Seconds of arithmetic and of reading that a part takes at least."""
    used = _BF16 if part in _STAY else form
    read = work.weights * used.value_bytes + 2 * work.cached
    return work.operations / used.rate(machine), read / machine.bandwidth


def least(parts: Parts, machine: Machine, form: Format) -> float:
    """Seconds that a pass takes at least."""
    return sum(max(bound(part, work, machine, form)) for part, work in parts.items())


def step(machine: Machine, form: Format, rows: int) -> float:
    """Least seconds of a denoising step."""
    return least(counting.denoise_work(SHAPE, rows, CONTEXT), machine, form)


def token(machine: Machine, form: Format, rows: int) -> float:
    """Least seconds of one token in each row, left to right."""
    return least(counting.autoregressive_work(SHAPE, rows, CONTEXT), machine, form)


def advantage(machine: Machine, form: Format, rows: int, tokens_per_forward: float) -> float:
    """Tokens a second of diffusion, commits included, over those left to right."""
    length = SHAPE.canvas_length
    commit = least(counting.encode_work(SHAPE, rows, length, CONTEXT), machine, form)
    each = step(machine, form, rows) / tokens_per_forward + commit / length
    return token(machine, form, rows) / each


def fits(machine: Machine, form: Format) -> bool:
    """Whether the weights alone fit the machine's memory."""
    inventory = _inventory()
    stay = inventory.embedding + inventory.router + inventory.norms_and_scalars
    held = (inventory.all - stay) * form.value_bytes + 2 * stay
    return held <= machine.memory


@cache
def _inventory() -> Inventory:
    return take_inventory(SHAPE)


def section() -> str:
    """Everything between the two marks of the page."""
    return "\n".join([*_assumptions(), *_parts(), *_steps(), *_ratios()])


def _assumptions() -> Iterator[str]:
    yield "| machine | bf16 TFLOP/s | 8 bits | FP4 | TB/s | memory | from |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for one in MACHINES:
        four = "-" if one.four is None else f"{one.four / TERA:,.0f}"
        rates = f"{one.bf16 / TERA:,.1f} | {one.eight / TERA:,.1f} | {four}"
        size = f"{one.bandwidth / TERA:.3g} | {one.memory / GIGA:.0f} GB"
        yield f"| {one.name} | {rates} | {size} | {one.source} |"
    yield ""


def _parts() -> Iterator[str]:
    """One step in NVFP4, the format that fits all four."""
    form, work = FORMATS[-1], counting.denoise_work(SHAPE, 1, CONTEXT)
    yield f"### One denoising step, {form.name}, one row of {SHAPE.canvas_length}, part by part"
    yield ""
    yield "Milliseconds at least, and what sets them: *c* arithmetic, *m* memory."
    yield ""
    yield _line(["part", "GFLOP", "GB", *(one.name for one in MACHINES)])
    yield _rule(1, 2 + len(MACHINES))
    for part, one in work.items():
        used = _BF16 if part in _STAY else form
        read = (one.weights * used.value_bytes + 2 * one.cached) / GIGA
        cells = [part, f"{one.operations / GIGA:,.1f}", f"{read:.3g}"]
        for machine in MACHINES:
            compute, memory = bound(part, one, machine, form)
            mark = "c" if compute >= memory else "m"
            cells.append(f"{_milliseconds(max(compute, memory))} *{mark}*")
        yield _line(cells)
    sums = [_milliseconds(least(work, machine, form)) for machine in MACHINES]
    total = counting.total(work)
    yield _line(["all", f"{total.operations / GIGA:,.0f}", "", *sums])
    yield ""


def _steps() -> Iterator[str]:
    yield from _by_rows("A denoising step", step)
    yield from _by_rows("One token left to right", token)


def _by_rows(title: str, seconds: Callable[[Machine, Format, int], float]) -> Iterator[str]:
    yield f"### {title}, milliseconds at least, by rows at once"
    yield ""
    yield from _table(
        [str(rows) for rows in BATCHES],
        lambda machine, form: [_milliseconds(seconds(machine, form, rows)) for rows in BATCHES],
    )


def _ratios() -> Iterator[str]:
    yield "### Diffusion over left to right, one row, by tokens per forward"
    yield ""
    yield "Tokens a second of the one over those of the other; encoding the canvases is counted."
    yield ""
    yield from _table(
        [str(count) for count in TOKENS_PER_FORWARD],
        lambda machine, form: [
            f"{advantage(machine, form, 1, count):.2f}" for count in TOKENS_PER_FORWARD
        ],
    )
    yield f"### The same with {USUAL} tokens per forward, by rows at once"
    yield ""
    yield from _table(
        [str(rows) for rows in BATCHES],
        lambda machine, form: [f"{advantage(machine, form, rows, USUAL):.2f}" for rows in BATCHES],
    )


def _table(
    columns: Sequence[str], cells: Callable[[Machine, Format], Sequence[str]]
) -> Iterator[str]:
    yield _line(["machine", "weights", *columns])
    yield _rule(2, len(columns))
    for machine in MACHINES:
        for form in FORMATS:
            there = cells(machine, form) if fits(machine, form) else ["does not fit"] * len(columns)
            yield _line([machine.name, form.name, *there])
    yield ""


def _milliseconds(seconds: float) -> str:
    value = seconds / MILLI
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(left: int, right: int) -> str:
    return _line(["---"] * left + ["---:"] * right)


def page(text: str) -> str:
    """The page `text` with its computed section anew. Raises ValueError without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the marks of the computed section")
    return f"{before}{BEGIN}\n{section()}\n{END}{after}".replace("\n\n\n", "\n\n")


def main(arguments: list[str]) -> int:
    """Write the section, or with `--check` compare it; 1 where they differ, 2 for anything else."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    text = PAGE.read_text(encoding="utf-8")
    new = page(text)
    if new == text:
        return 0
    if arguments:
        sys.stderr.write(f"{PAGE} is out of date: run python benchmarks/roofline.py\n")
        return 1
    aside = PAGE.with_suffix(".part")
    aside.write_text(new, encoding="utf-8")
    os.replace(aside, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
