"""Encode, denoise and generate over the cache, bit for bit against its plain twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache as remember
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.api import Mode, Model
from sfumato.config.generation import GenerationConfig
from sfumato.kv.cache import DERIVED_BYTES, Fresh, KVCache
from sfumato.model.attention import Attention
from sfumato.model.derived import derived_parts
from sfumato.model.diffusion_gemma import DiffusionGemma
from tests.helpers import Shape, randomise, tiny_config
from tests.plain_cache import PlainCache, PlainNetwork, plain_twin

SHAPES = {
    "short-window": Shape(pattern="SSF", window=5),
    "long-window": Shape(pattern="SF", window=64, heads=8, global_kv_heads=2),
    "two-full": Shape(pattern="FSF", window=9, global_kv_heads=2, global_head_dim=64),
    "only-full": Shape(pattern="FF", global_kv_heads=2, global_head_dim=24),
    "ungrouped": Shape(pattern="SF", heads=2, kv_heads=2, global_kv_heads=2, window=12),
}
DTYPES = (torch.float32, torch.bfloat16)
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "grad": torch.enable_grad,
}
# Derived keys and values always kept, never kept, and given up while the prefix grows.
BUDGETS = (DERIVED_BYTES, 0, 20_000)


@remember
def networks(name: str, dtype: torch.dtype) -> tuple[DiffusionGemma, PlainNetwork]:
    net = DiffusionGemma(tiny_config(SHAPES[name]))
    randomise(net, len(name))
    net.requires_grad_(False)
    net = net.to(dtype).eval()
    return net, plain_twin(net)


def ids(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def mask(rows: int, length: int, seed: int, first: bool) -> Tensor | None:
    """Real places, padding on either side; at a row's first pass at least one is real."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(1 if first else 0, length + 1, (rows, 1), generator=generator)
    places = torch.arange(length)
    return (places < real) if seed % 2 else (places >= length - real)


def rows_of(chosen: Tensor) -> Callable[[KVCache], KVCache]:
    return lambda cache: cache.select(chosen)


def near(ours: Tensor, plain: Tensor) -> None:
    """Equal but for an ulp of derived keys, which a random network multiplies.

    torch computes the inverse root with vector instructions but at the end of a tensor, so that a
    position's last bit hangs on its place in the tensor that it is computed in.
    """
    share = {torch.float32: 1e-3, torch.bfloat16: 0.2}[plain.dtype]
    bound = share * float(plain.float().abs().max()) if plain.numel() else 0.0
    torch.testing.assert_close(ours, plain, rtol=0, atol=bound)


class Pair:
    """A cache and its plain twin, led through the same passes."""

    def __init__(self, nets: tuple[DiffusionGemma, PlainNetwork], rows: int) -> None:
        self.nets, self.rows = nets, rows
        self.caches = nets[0].new_cache(), nets[1].new_cache()

    def copy(self, change: Callable[[KVCache], KVCache], rows: int) -> Pair:
        other = Pair(self.nets, rows)
        other.caches = change(self.caches[0]), change(self.caches[1])
        return other

    def append(self, length: int, seed: int, padded: bool) -> None:
        real = mask(self.rows, length, seed, not self.caches[0].length) if padded else None
        hidden, plain = (
            net.encode_hidden(ids(self.rows, length, seed), cache, attention_mask=real)[0]
            for net, cache in zip(self.nets, self.caches, strict=True)
        )
        seen = slice(None) if real is None else real
        self.same(hidden[seen], plain[seen])

    def fail(self, length: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pass that runs out of memory after some of its layers have written their slots."""

        def broken(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(self.nets[0].layers[-1], "finish", broken)
            with pytest.raises(MemoryError):
                self.nets[0].encode(ids(self.rows, length, seed), self.caches[0])

    def check(self) -> None:
        ours, plain = self.caches
        assert ours.length == plain.length
        assert (ours.dropped, ours.padded) == (plain.dropped, plain.padded)
        assert ours.positions is not None
        assert plain.positions is not None
        assert torch.equal(ours.positions, plain.positions)
        canvas = ids(self.rows, 7, 1)
        logits = [net.denoise(canvas, one) for net, one in zip(self.nets, self.caches, strict=True)]
        self.same(*logits)

    def same(self, ours: Tensor, plain: Tensor) -> None:
        """Equal bits, but for what derived keys may lose: see `near`."""
        if self.nets[0].derived_bytes == DERIVED_BYTES:
            assert torch.equal(ours, plain)
        else:
            near(ours, plain)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(DTYPES),
    st.sampled_from(sorted(MODES)),
    st.sampled_from(BUDGETS),
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["append", "append", "token", "fork", "select", "fail"]),
            st.integers(0, 99),
            st.integers(1, 40),
            st.booleans(),
        ),
        min_size=1,
        max_size=9,
    ),
)
def test_every_pass_has_the_bits_of_the_plain_twin(
    name: str,
    dtype: torch.dtype,
    mode: str,
    budget: int,
    rows: int,
    steps: list[tuple[str, int, int, bool]],
) -> None:
    nets = networks(name, dtype)
    nets[0].derived_bytes = budget
    monkeypatch = pytest.MonkeyPatch()
    with MODES[mode]():
        pairs = [Pair(nets, rows)]
        pairs[0].append(steps[0][2], steps[0][1], steps[0][3])
        for kind, seed, length, padded in steps[1:]:
            pair = pairs[seed % len(pairs)]
            if kind == "fork":
                pairs.append(pair.copy(lambda cache: cache.fork(), pair.rows))
            elif kind == "select":
                chosen = torch.arange(pair.rows) % 2 == seed % min(2, pair.rows)
                pairs.append(pair.copy(rows_of(chosen), int(chosen.sum())))
            elif kind == "fail":
                pair.fail(length, seed, monkeypatch)
            else:
                pair.append(1 if kind == "token" else length, seed, padded)
        for pair in pairs:
            pair.check()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_generate_writes_what_it_wrote(budget: int, mode: Mode) -> None:
    nets = networks("two-full", torch.float32)
    nets[0].derived_bytes = budget
    config = GenerationConfig(max_new_tokens=24, max_denoising_steps=3, eos_token_id=(5,))
    prompt, real = ids(3, 21, 2), mask(3, 21, 2, True)
    for seed in (0, [3, 3, 4]):
        ours, plain = (
            Model(net, config).generate(prompt, seed, mode=mode, attention_mask=real)
            for net in nets
        )
        if budget == DERIVED_BYTES:
            assert ours.tokens == plain.tokens
            assert ours.stats.steps == plain.stats.steps
        assert all(len(row) == 24 or row[-1] == 5 for row in ours.tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_derived_keys_and_values_are_the_stored_ones(dtype: torch.dtype) -> None:
    net, twin = networks("two-full", dtype)
    net.derived_bytes = 0
    real = mask(2, 700, 6, True)
    cache, other = (one.encode(ids(2, 700, 3), attention_mask=real) for one in (net, twin))
    plain = cast(PlainCache, other)
    none = torch.zeros(2, 2, 0, 64, dtype=dtype)
    for layer in (0, 2):
        attention: Attention = net.layers[layer].self_attn
        rope = net.config.text.rope_full
        for head in range(2):
            fresh = Fresh(none, none, none)
            found = [
                list(derived_parts(attention, fresh, cache, layer, head, rope, length))
                for length in (10_000, 64, 131)
            ]
            joined = [
                [torch.cat(one, dim=2) for one in zip(*parts, strict=True)] for parts in found
            ]
            [keys, values], *others = joined
            assert all(torch.equal(k, keys) and torch.equal(v, values) for k, v in others)
            assert [len(parts) for parts in found] == [1, 11, 6]
            ulp = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}[dtype]
            for one, kept in ((keys, plain.keys[layer]), (values, plain.values[layer])):
                mine = kept[:, head : head + 1]
                torch.testing.assert_close(one, mine, rtol=ulp, atol=ulp)
                assert float((one != mine).float().mean()) < 0.01
