"""Attention of the joint training pass: written out, against torch's fused function, side by side.

Usage: python benchmarks/joint_attention.py [--threads N] [--rounds N]

The shapes are the small model's: 48 rows, 8 heads of 32, a prompt of 88 and a canvas of 84. Both
forms take turns in one process; medians of the forward and backward times are printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

ROWS, HEADS, PROMPT, CANVAS, DIM = 48, 8, 88, 84, 32
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def block_mask() -> Tensor:
    """What may look at what [S, S]: a causal prompt, and a canvas that sees everything."""
    length = PROMPT + CANVAS
    mask = torch.ones(length, length, dtype=torch.bool)
    mask[:PROMPT, :PROMPT] = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril()
    mask[:PROMPT, PROMPT:] = False
    return mask


def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One call under a block mask."""
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=block_mask(), scale=1.0
    )


def written_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The prompt and the canvas apart, without the scores that the mask would hide."""
    causal = torch.full((PROMPT, PROMPT), -torch.inf, dtype=queries.dtype).triu(1)
    scores = torch.matmul(queries[:, :, :PROMPT], keys[:, :, :PROMPT].transpose(2, 3)) + causal
    prompt = torch.matmul(torch.softmax(scores, -1), values[:, :, :PROMPT])
    scores = torch.matmul(queries[:, :, PROMPT:], keys.transpose(2, 3))
    return torch.cat([prompt, torch.matmul(torch.softmax(scores, -1), values)], dim=2)


def timed(form: Form) -> tuple[float, float]:
    """Milliseconds forward and backward on fresh inputs."""
    shape = (ROWS, HEADS, PROMPT + CANVAS, DIM)
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    gradient = torch.randn(shape).bfloat16()
    started = time.perf_counter()
    out = form(inputs[0] * 0.1, inputs[1], inputs[2])
    middle = time.perf_counter()
    torch.autograd.backward(out, gradient)
    return 1e3 * (middle - started), 1e3 * (time.perf_counter() - middle)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    forms: dict[str, Form] = {"fused": fused, "written out": written_out}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(options.rounds + 1):
        for name, form in forms.items():
            times[name].append(timed(form))
    sys.stdout.write(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    for name, pairs in times.items():
        forward, backward = (statistics.median(one) for one in zip(*pairs[1:], strict=True))
        sys.stdout.write(f"{name:12} forward {forward:6.1f} ms  backward {backward:6.1f} ms\n")


if __name__ == "__main__":
    main()
