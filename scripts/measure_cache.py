"""Measure what 8 bits cost a KV cache in error, and what caches of the released shape weigh.

Usage: python scripts/measure_cache.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import sfumato
from sfumato.config.model import TextConfig
from sfumato.config.parse import parse_config
from sfumato.kv.cache import Fresh, KVCache
from sfumato.kv.narrow import narrow, widen

RELEASED = Path(__file__).resolve().parents[1] / "tests" / "data" / "released_config.json"
POSITIONS = 262_144
PASSES = (POSITIONS - 2048,) + (256,) * 8  # a prompt, then canvases


def int8(x: Tensor) -> Tensor:
    """The cache's own rounding: a scale for each head and position."""
    return widen(narrow(x), x.dtype)


def int8_head(x: Tensor) -> Tensor:
    """Integers with one scale for all positions [.., T, H] of a head."""
    scale = x.abs().amax((-2, -1), keepdim=True) / 127
    return (x / scale).round() * scale


def float8(x: Tensor) -> Tensor:
    """E4M3 with a scale for each head and position."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8, scale a head and position": int8,
    "int8, scale a head": int8_head,
    "float8_e4m3, scale a head and position": float8,
}


def error(rounded: Tensor, exact: Tensor) -> float:
    """Root mean square error over the root mean square."""
    return float((rounded - exact).norm() / exact.norm())


def fill(text: TextConfig, dtype: str | None, passes: Sequence[int]) -> KVCache:
    """A cache of one row, in bfloat16 and without its memory, after `passes` of so many slots."""
    sliding = tuple(layer.is_sliding for layer in text.layers)
    cache = KVCache(sliding, text.sliding_window, text.max_position_embeddings, dtype)
    with torch.inference_mode():
        for count in passes:
            for index, layer in enumerate(text.layers):
                shape = (1, layer.num_key_value_heads, count, layer.head_dim)
                keys, values, raw = (
                    torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in range(3)
                )
                cache.extend(index, Fresh(keys, values, None if layer.is_sliding else raw))
            cache.append(cache.place(torch.ones(1, count, dtype=torch.bool)))
    return cache


@torch.inference_mode()
def draws() -> dict[str, Tensor]:
    """Vectors [B, N, T, H]: normal, with heavy tails, and what the small model caches."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 2, 1024, 512, generator=generator)
    third = torch.randn(3, 1, 2, 1024, 512, generator=generator).square().mean(0).sqrt()
    heavy = torch.randn(1, 2, 1024, 512, generator=generator) / third  # Student's t, 3 degrees
    small = sfumato.load()
    text = "Ines flew from Oslo to Lima on 3 May 2021 with 41 kg of maps. " * 4
    cache = small.encode(torch.tensor([small.tokenizer.encode_text(text)]))
    found: dict[str, Tensor] = {"normal": normal, "Student's t": heavy}
    full = cache.layers[cache.sliding.index(False)]
    near = cache.layers[cache.sliding.index(True)]
    for name, part in (("sliding keys", near.keys), ("sliding values", near.values)):
        if part is not None:
            found[name] = part.view()
    if full.raw is not None:
        found["full raw keys"] = torch.cat([page.view() for page in full.raw.pages], dim=2)
    return found


def main() -> int:
    """Print one line a format and one a cache."""
    samples = draws()
    print(f"{'root mean square error':<40}" + "".join(f"{name:>16}" for name in samples))
    for name, form in FORMATS.items():
        errors = "".join(f"{100 * error(form(x), x):>14.2f} %" for x in samples.values())
        print(f"{name:<40}{errors}")
    text = parse_config(json.loads(RELEASED.read_text(encoding="utf-8"))).text
    for dtype in (None, "int8"):
        cache = fill(text, dtype, PASSES)
        print(
            f"released shape, {POSITIONS} positions, {dtype or 'bfloat16'}: {cache.nbytes:,} bytes"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
