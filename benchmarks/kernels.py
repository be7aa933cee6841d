"""The kernels against torch, side by side: products, experts, head, attention, in one table.

Usage: python benchmarks/kernels.py [--threads 1] [--repeats 15] [--dtype float32] [--only linear]

Each line takes turns, kernel and torch, and gives both medians and the ratio of medians with its
95 % interval (above 1: the kernel is faster). Weights are bf16 but for torch in float32, which
needs them so. For processors without bf16 arithmetic torch in bfloat16 takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.benchmark.peers import commit
from sfumato.benchmark.statistics import Ratio, ratio_of_medians
from sfumato.cli.machine import look_at_machine
from sfumato.ops.attention import attention
from sfumato.ops.experts import experts
from sfumato.ops.head import head
from sfumato.ops.kernels import Kernels, choose
from sfumato.ops.linear import linear
from sfumato.ops.route import route
from sfumato.ops.weight import int8, nvfp4, panels, rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import quantise

Work = Callable[[], object]
# rows, n, k: a canvas and a few rows at released widths, one row, and the small model's products.
PRODUCTS = ((256, 4096, 2816), (16, 1408, 2816), (1, 4096, 2816), (84, 256, 256))


@dataclass(frozen=True)
class Case:
    """One line: the same work by a kernel and by torch, and its arithmetic in GFLOP."""

    name: str
    gflop: float
    kernel: Work
    torch: Work


def products(kernels: Kernels, dtype: torch.dtype) -> Iterator[Case]:
    """Linear maps by every layout."""
    narrow = replace(kernels, narrow=True)
    for m, n, k in PRODUCTS:
        weight, x = torch.randn(n, k).bfloat16(), torch.randn(m, k).to(dtype)
        own = weight.to(dtype)
        layouts = {
            "bf16 in place": rows(weight),
            "bf16 panels": panels(weight),
            "NVFP4": nvfp4([quantise(weight.float())]),
            "rows in 8 bits": int8(quantise_rows(weight)),
        }
        for name, layout in layouts.items():
            yield Case(
                f"linear {m} x {k} -> {n}, {name}",
                2e-9 * m * n * k,
                partial(linear, x, layout, kernels),
                partial(functional.linear, x, own),
            )
        for name, layout in layouts.items():
            if narrow.narrows(layout.layout, k):
                yield Case(
                    f"linear {m} x {k} -> {n}, {name}, activations in 8 bits",
                    2e-9 * m * n * k,
                    partial(linear, x, layout, narrow),
                    partial(functional.linear, x, own),
                )


def mixtures(kernels: Kernels, dtype: torch.dtype) -> Iterator[Case]:
    """Experts: a quarter of the released model's 128, and the small model's."""
    for length, hidden, inner, count, slots in ((64, 2816, 704, 32, 8), (84, 256, 64, 8, 2)):
        gate_up = torch.randn(count, 2 * inner, hidden).bfloat16()
        down = torch.randn(count, hidden, inner).bfloat16()
        x = torch.randn(length, hidden).to(dtype)
        chosen, shares = route(torch.randn(length, count), torch.ones(count), slots)
        gate, values = gate_up.chunk(2, dim=1)
        halves = [quantise(one.float().contiguous()) for one in (gate, values, down)]
        stored = nvfp4(halves[:1], halves[1:2]), nvfp4(halves[2:])
        wide_up, wide_down = gate_up.to(dtype), down.to(dtype)
        for name, parts, own in (
            ("bf16 in place", (rows(gate, values), rows(down)), kernels),
            ("NVFP4", stored, kernels),
            ("NVFP4, activations in 8 bits", stored, replace(kernels, narrow=True)),
        ):
            yield Case(
                f"experts {length} x {hidden}, {count} of width {inner}, {slots} each, {name}",
                2e-9 * length * slots * 3 * hidden * inner,
                partial(experts, x, chosen, shares, *parts, own),
                partial(_loop, x, chosen, shares, wide_up, wide_down),
            )


def _loop(x: Tensor, chosen: Tensor, shares: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The experts as the plain model computes them."""
    parts = shares.new_empty(*chosen.shape, x.shape[-1])
    for expert in torch.unique(chosen).tolist():
        at, slot = torch.where(chosen == expert)
        gate, values = functional.linear(x[at], up[expert]).chunk(2, dim=-1)
        part = functional.linear(functional.gelu(gate, approximate="tanh") * values, down[expert])
        parts[at, slot] = part * shares[at, slot, None]
    return parts.sum(dim=1)


def heads(kernels: Kernels, dtype: torch.dtype) -> Iterator[Case]:
    """A step's whole vocabulary: logits, softcap, temperature, sample, argmax and entropy."""
    for length, hidden, vocab in ((64, 2816, 32768), (84, 256, 2048)):
        table = torch.randn(vocab, hidden).bfloat16()
        x, own = torch.randn(length, hidden).to(dtype), table.to(dtype)
        temperatures = torch.full((length,), 0.7)
        uniforms = torch.rand(length, dtype=torch.float64)
        yield Case(
            f"head {length} x {hidden} -> {vocab}, with sample, argmax, entropy",
            2e-9 * length * hidden * vocab,
            partial(head, x, rows(table), 30.0, temperatures, uniforms, kernels),
            partial(_plain_head, x, own),
        )


def _plain_head(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the plain loop does it."""
    logits = torch.tanh(functional.linear(x, table).float() / 30) * 30 / 0.7
    shares = torch.softmax(logits, dim=-1)
    normalised = logits - logits.logsumexp(dim=-1, keepdim=True)
    entropy = -(normalised * torch.softmax(normalised, dim=-1)).sum(-1)
    return torch.multinomial(shares, 1), logits.argmax(-1), entropy


def mixes(kernels: Kernels, dtype: torch.dtype) -> Iterator[Case]:
    """Attention of a canvas: the released full layer over 2,048 slots, and the small model's."""
    for count, kv, length, slots, dim in ((16, 2, 256, 2048, 512), (8, 4, 84, 190, 32)):
        queries = torch.randn(1, count, length, dim).to(dtype)
        keys = (torch.randn(1, kv, slots, dim) / dim**0.5).to(dtype)
        values = torch.randn(1, kv, slots, dim).to(dtype)
        yield Case(
            f"attention {count} heads of {dim}, {length} rows to {slots} slots",
            4e-9 * count * length * slots * dim,
            partial(attention, queries, keys, values, None, kernels),
            partial(
                functional.scaled_dot_product_attention,
                queries,
                keys,
                values,
                scale=1.0,
                enable_gqa=True,
            ),
        )


def compare(case: Case, repeats: int) -> tuple[float, float, Ratio]:
    """Median seconds of kernel and torch, taken in turns, and torch's over the kernel's."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, samples in zip((case.kernel, case.torch), took, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                samples.append(time.perf_counter() - began)
    ratio = ratio_of_medians(took[1], took[0])
    own, other = (sorted(samples)[len(samples) // 2] for samples in took)
    return own, other, ratio


def main(arguments: list[str]) -> int:
    """Print the table; 2 where there are no kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", default="", help="lines whose name begins so")
    options = parser.parse_args(arguments)
    kernels = choose()
    if kernels is None:
        print("there are no kernels here", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    machine, today = look_at_machine(Path.home()), datetime.now(UTC).date()
    print(
        f"{machine.processor}, {options.threads} threads, {kernels.name}, "
        f"torch {torch.__version__} in {options.dtype}, commit {commit(__file__)}, {today}"
    )
    print("| work | GFLOP/s | torch | ratio | 95 % |\n| --- | ---: | ---: | ---: | --- |")
    for family in (products, mixtures, heads, mixes):
        for case in family(kernels, dtype):
            if not case.name.startswith(options.only):
                continue
            own, other, ratio = compare(case, options.repeats)
            print(
                f"| {case.name} | {case.gflop / own:.1f} | {case.gflop / other:.1f} | "
                f"{ratio.value:.2f} | {ratio.low:.2f}-{ratio.high:.2f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
