"""Attention, norms and rotated heads against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.ops import attention as attention_op
from sfumato.ops import norm as norm_op
from sfumato.ops.attention import attention
from sfumato.ops.kernels import Kernels
from sfumato.ops.norm import heads, norm

many = settings(max_examples=25, deadline=None)
DTYPES = (torch.float32, torch.bfloat16)
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
shapes = st.tuples(
    st.integers(1, 3),  # batch
    st.sampled_from([(1, 1), (4, 2), (6, 2), (8, 1)]),
    st.integers(1, 140),  # rows
    st.integers(1, 200),  # slots
    st.sampled_from([16, 32, 48, 64, 128]),
)


def _qkv(
    shape: tuple[int, tuple[int, int], int, int, int], dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, (count, kv), length, slots, dim = shape
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, count, length, dim, generator=generator)
    keys = torch.randn(batch, kv, slots, dim, generator=generator) / dim**0.5
    values = torch.randn(batch, kv, slots, dim, generator=generator)
    return queries.to(dtype), keys.to(dtype), values.to(dtype)


@given(shapes, st.sampled_from(DTYPES), st.booleans(), st.integers(0, 999))
@many
def test_attention_is_the_reference(
    kernels: Kernels,
    shape: tuple[int, tuple[int, int], int, int, int],
    dtype: torch.dtype,
    masked: bool,
    seed: int,
) -> None:
    queries, keys, values = _qkv(shape, dtype, seed)
    mask = None
    if masked:
        size = (shape[0], shape[2], shape[3])
        mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) > 0.5
        mask[:, :, seed % shape[3]] = True
    found = attention(queries, keys, values, mask, kernels)
    exact = attention_op.reference(queries.float(), keys.float(), values.float(), mask)
    assert found.dtype == dtype
    bound = BOUNDS[dtype]
    torch.testing.assert_close(found.float(), exact, rtol=bound, atol=bound)


def test_views_of_a_cache(kernels: Kernels) -> None:
    """Keys and values with spare room behind them, queries from another layout."""
    queries, keys, values = _qkv((2, (4, 2), 20, 90, 32), torch.float32, 1)
    wide_keys = torch.randn(2, 2, 200, 32)
    wide_values = torch.randn(2, 2, 300, 32)
    wide_keys[:, :, 7:97], wide_values[:, :, 5:95] = keys, values
    turned = queries.transpose(1, 2).contiguous().transpose(1, 2)
    found = attention(turned, wide_keys[:, :, 7:97], wide_values[:, :, 5:95], None, kernels)
    assert torch.equal(found, attention(queries, keys, values, None, kernels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_changes_no_bit(kernels: Kernels, dtype: torch.dtype) -> None:
    queries, keys, values = _qkv((1, (4, 2), 30, 100, 32), dtype, 2)
    alone = attention(queries, keys, values, None, kernels)
    before, after = 37, 11
    fill = torch.randn(1, 2, before + 100 + after, 32, generator=torch.Generator().manual_seed(3))
    wide_keys, wide_values = fill.to(dtype), fill.flip(0).to(dtype).clone()
    wide_keys[:, :, before:-after], wide_values[:, :, before:-after] = keys, values
    mask = torch.zeros(1, 30, 148, dtype=torch.bool)
    mask[:, :, before:-after] = True
    assert torch.equal(attention(queries, wide_keys, wide_values, mask, kernels), alone)


def test_bits_hang_neither_on_threads_nor_on_the_batch(kernels: Kernels) -> None:
    queries, keys, values = _qkv((3, (4, 2), 150, 130, 32), torch.float32, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = attention(queries, keys, values, None, kernels)
        torch.set_num_threads(3)
        assert torch.equal(attention(queries, keys, values, None, kernels), whole)
    finally:
        torch.set_num_threads(before)
    one = attention(queries[1:2, :, 40:41], keys[1:2], values[1:2], None, kernels)
    assert torch.equal(one[0, 0], whole[1, 40])


def test_a_row_that_sees_nothing_is_no_number(kernels: Kernels) -> None:
    queries, keys, values = _qkv((1, (2, 1), 4, 70, 16), torch.float32, 5)
    mask = torch.ones(1, 4, 70, dtype=torch.bool)
    mask[0, 2] = False
    found = attention(queries, keys, values, mask, kernels)
    assert bool(found[0, 2].isnan().all())
    assert bool(found[0, [0, 1, 3]].isfinite().all())


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    queries, keys, values = _qkv((1, (2, 1), 9, 150, 32), torch.float32, 6)
    found = attention(queries * 300, keys * 300, values, None, kernels)
    exact = attention_op.reference(
        queries.double() * 300, keys.double() * 300, values.double(), None
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)


@given(st.integers(1, 50), st.integers(1, 300), st.sampled_from(DTYPES), st.integers(0, 99))
@many
def test_norm_is_the_reference(
    kernels: Kernels, length: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, width, generator=generator).to(dtype)
    add = torch.randn(length, width, generator=generator).to(dtype)
    weight = torch.rand(width, generator=generator) + 0.5
    for own_weight, residual, scale in ((weight, add, 0.7), (weight, None, 1.0), (None, None, 1.0)):
        found = norm(x, own_weight, 1e-6, kernels, residual=residual, scale=scale)
        expected = norm_op.reference(x, own_weight, 1e-6, residual, scale)
        bound = {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
        alone = residual if residual is None else residual[-1:]
        again = norm(x[-1:], own_weight, 1e-6, kernels, residual=alone, scale=scale)
        assert torch.equal(again[0], found[-1])


@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 40), st.integers(0, 99)
)
@many
def test_heads_are_the_reference(
    kernels: Kernels, batch: int, length: int, count: int, half: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, count, 2 * half, generator=generator)
    weight = torch.rand(2 * half, generator=generator) + 0.5
    angles = torch.rand(batch, length, half, generator=generator).repeat(1, 1, 2) * 6
    tables = (angles.cos(), angles.sin())
    for own_weight, own_tables in ((weight, tables), (None, None), (weight, None)):
        for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
            found = heads(x.to(dtype), own_weight, 1e-6, own_tables, kernels)
            expected = norm_op.heads_reference(x.to(dtype), own_weight, 1e-6, own_tables)
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


def test_reasons_to_decline() -> None:
    assert attention_op.declines(torch.float32, 32) is None
    assert "multiple of 16" in str(attention_op.declines(torch.float32, 24))
    assert "float16" in str(attention_op.declines(torch.float16, 32))
