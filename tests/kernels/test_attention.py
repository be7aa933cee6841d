"""Attention, norms and rotated heads against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.ops import attention as attention_op
from sfumato.ops import norm as norm_op
from sfumato.ops.attention import attention, attention_in_parts
from sfumato.ops.kernels import Kernels, give
from sfumato.ops.norm import heads, norm
from sfumato.ops.visibility import Canvas, Causal

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


def _causal(
    batch: int, length: int, slots: int, window: int | None, images: bool, seed: int
) -> Causal:
    """Rows behind `slots - length` cached slots, padding and images anywhere."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(batch, slots, generator=generator) > 0.3 * (seed % 3 > 0)
    positions = torch.where(real, real.cumsum(1) - 1, -1)
    queries = positions[:, slots - length :]
    groups = None
    if images:
        groups = (torch.rand(batch, length, generator=generator) * 4).long() // 2 - 1
        groups = groups.masked_fill(queries < 0, -1)
    return Causal(queries, positions, window, groups)


@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from([0, None, 1, 5, 64, 100]),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=50, deadline=None)
def test_attention_is_the_reference(
    kernels: Kernels,
    shape: tuple[int, tuple[int, int], int, int, int],
    dtype: torch.dtype,
    window: int | None,
    images: bool,
    seed: int,
) -> None:
    batch, counts, length, slots, dim = shape
    slots = max(slots, length)
    queries, keys, values = _qkv((batch, counts, length, slots, dim), dtype, seed)
    sight = None if window == 0 else _causal(batch, length, slots, window, images, seed)
    found = attention(queries, keys, values, sight, kernels)
    exact = attention_op.reference(queries.float(), keys.float(), values.float(), sight)
    assert found.dtype == dtype
    bound = BOUNDS[dtype]
    torch.testing.assert_close(found.float(), exact, rtol=bound, atol=bound)


@given(
    st.integers(0, 200), st.integers(1, 90), st.sampled_from([None, 7, 64, 90]), st.integers(0, 99)
)
@many
def test_a_canvas_sees_itself_and_what_is_cached(
    kernels: Kernels, held: int, length: int, window: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(2, held, generator=generator) > 0.2
    positions = torch.where(real, real.cumsum(1) - 1, -1)
    sight = Canvas(real.sum(1), positions, window, length)
    queries, keys, values = _qkv((2, (4, 2), length, held + length, 32), torch.float32, seed)
    found = attention(queries, keys, values, sight, kernels)
    exact = attention_op.reference(queries, keys, values, sight)
    torch.testing.assert_close(found, exact, rtol=2e-5, atol=2e-5)


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
@pytest.mark.parametrize("window", [None, 50])
def test_padding_changes_no_bit(kernels: Kernels, dtype: torch.dtype, window: int | None) -> None:
    before, held, length, after = 37, 70, 30, 11
    queries, keys, values = _qkv((1, (4, 2), length, held + length, 32), dtype, 2)
    places = torch.arange(held + length)[None]
    fill = torch.randn(1, 2, before + held + length, 32, generator=torch.Generator().manual_seed(3))
    wide_keys, wide_values = fill.to(dtype), fill.flip(0).to(dtype).clone()
    wide_keys[:, :, before:], wide_values[:, :, before:] = keys, values
    padded = torch.cat([torch.full((1, before), -1), places], dim=1)
    alone = attention(queries, keys, values, Causal(places[:, held:], places, window), kernels)
    sight = Causal(places[:, held:], padded, window)
    assert torch.equal(attention(queries, wide_keys, wide_values, sight, kernels), alone)
    longer = (torch.cat([one, one[:, :, :after]], dim=2) for one in (queries, keys, values))
    more_queries, more_keys, more_values = longer
    ends = torch.cat([places, torch.full((1, after), -1)], dim=1)
    sight = Causal(ends[:, held:], ends, window)
    found = attention(more_queries, more_keys, more_values, sight, kernels)
    assert torch.equal(found[:, :length], alone)

    first = held if window is None else window - 1
    seen = [one[:, :, held - first :] for one in (keys, values)]
    alone = attention(queries, seen[0], seen[1], None, kernels)
    canvas = Canvas(torch.tensor([held]), padded[:, : before + held], window, length)
    assert torch.equal(attention(queries, wide_keys, wide_values, canvas, kernels), alone)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.sampled_from([None, 1, 64, 75]),
    st.sampled_from(DTYPES),
)
@many
def test_bits_do_not_hang_on_the_pass(
    kernels: Kernels, lengths: list[int], window: int | None, dtype: torch.dtype
) -> None:
    total = sum(lengths)
    queries, keys, values = _qkv((1, (4, 2), total, total, 32), dtype, 7)
    places = torch.arange(total)[None]
    whole = attention(queries, keys, values, Causal(places, places, window), kernels)
    start = 0
    for length in lengths:
        end = start + length
        first = 0 if window is None else max(0, start - (window - 1))
        held, new = slice(first, end), slice(start, end)
        sight = Causal(places[:, new], places[:, held], window)
        part = attention(queries[:, :, new], keys[:, :, held], values[:, :, held], sight, kernels)
        assert torch.equal(part, whole[:, new])
        start = end


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


def test_padding_sees_itself(kernels: Kernels) -> None:
    queries, keys, values = _qkv((1, (2, 1), 4, 70, 16), torch.float32, 5)
    places = torch.arange(70)[None].clone()
    places[0, 68] = -1
    found = attention(queries, keys, values, Causal(places[:, 66:], places), kernels)
    torch.testing.assert_close(found[0, 2], values[0, :, 68].expand(2, -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": None}, "places, or neither"),
        ({"queries": torch.zeros(1, 5, dtype=torch.int32)}, "query_places"),
        ({"slots": torch.zeros(1, 70)}, "slot_places"),
        ({"groups": torch.zeros(4, dtype=torch.int32)}, "groups"),
        ({"window": 0}, "window"),
    ],
)
def test_what_does_not_fit_is_refused(
    kernels: Kernels, changes: dict[str, Tensor | int | None], message: str
) -> None:
    queries, keys, values = _qkv((1, (2, 1), 4, 70, 16), torch.float32, 5)
    places = Causal(torch.arange(66, 70)[None], torch.arange(70)[None]).places
    wrong = places._replace(**changes)  # type: ignore[arg-type]
    out = queries.new_empty(1, 4, 2, 16)
    handed = [
        None if one is None else give(one) for one in (wrong.queries, wrong.slots, wrong.groups)
    ]
    with pytest.raises(ValueError, match=message):
        kernels.native.attention(
            kernels.name,
            *(give(one) for one in (queries, keys, values)),
            *handed,
            wrong.window,
            wrong.aligned,
            give(out),
            kernels.threads,
        )


def test_shares_are_not_rounded_to_bf16(kernels: Kernels) -> None:
    """Of values that nearly cancel: what is left of two shares that differ by less than 2^-9."""
    apart = torch.arange(1, 33) * 2.0**-13
    queries = torch.zeros(1, 1, 32, 16)
    queries[0, 0, :, 0] = apart
    keys, values = torch.zeros(2, 1, 1, 2, 16)
    keys[0, 0, 1, 0] = -1
    values[0, 0, 0], values[0, 0, 1] = 1, -1
    found = attention(queries.bfloat16(), keys.bfloat16(), values.bfloat16(), None, kernels)
    expected = (queries.bfloat16()[0, 0, :, 0].float() / 2).tanh()[:, None].expand(32, 16)
    torch.testing.assert_close(found[0, :, 0].float(), expected, rtol=2**-7, atol=2**-17)


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
    angles = torch.rand(batch, length, half, generator=generator).repeat(1, 1, 2)[:, :, None] * 6
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


@given(shapes, st.sampled_from(DTYPES), st.sampled_from([64, 128, 1024]), st.integers(0, 99))
@many
def test_slots_in_parts_have_the_bits_of_all_at_once(
    kernels: Kernels,
    shape: tuple[int, tuple[int, int], int, int, int],
    dtype: torch.dtype,
    length: int,
    seed: int,
) -> None:
    queries, keys, values = _qkv(shape, dtype, seed)
    parts = list(zip(keys.split(length, dim=2), values.split(length, dim=2), strict=True))
    whole = attention(queries, keys, values, None, kernels)
    assert torch.equal(attention_in_parts(queries, iter(parts), kernels), whole)
    plain = attention(queries, keys, values)
    torch.testing.assert_close(attention_in_parts(queries, iter(parts)), plain, rtol=0, atol=0)


def test_parts_of_a_wrong_state_are_refused(kernels: Kernels) -> None:
    queries, keys, values = _qkv((1, (2, 1), 3, 70, 16), torch.float32, 1)
    out = torch.empty(1, 3, 2, 16)
    given_ = (give(queries), give(keys), give(values), None, None, None, 1, False, give(out), 1)
    with pytest.raises(ValueError, match="state has the wrong shape"):
        kernels.native.attention(kernels.name, *given_, give(torch.empty(6, 16)))
