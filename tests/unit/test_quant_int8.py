"""Matrices in 8 bits: how far off, exact products, and what is no matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import QuantisationError
from sfumato.quant import int8 as module
from sfumato.quant.int8 import Int8Tensor, check_scales, decode, is_from, quantise_rows


@given(st.integers(1, 9), st.integers(1, 40), st.floats(1e-30, 1e30), st.integers(0, 999))
def test_codes_are_the_nearest(rows: int, columns: int, size: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    stored = quantise_rows(weight)
    found = decode(stored, torch.float64)
    half = stored.scale.double() * 0.500001
    assert bool(((found - weight.double()).abs() <= half).all())
    assert bool((stored.codes.abs().amax(-1) == 127).all())
    check_scales(stored)


@given(st.integers(0, 999))
def test_rows_are_the_decoded_ones(seed: int) -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed))
    stored = quantise_rows(weight)
    ids = torch.tensor([[3, 49], [3, 0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(stored.rows(ids, dtype), decode(stored, dtype)[ids])


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = quantise_rows(weight)
    monkeypatch.setattr(module, "_PIECE", 56)
    parts = quantise_rows(weight)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scale, parts.scale)
    pieces = list(parts.pieces(torch.float32))
    assert len(pieces) == 8
    assert torch.equal(torch.cat([part for _, part in pieces]), decode(whole, torch.float32))


def test_rows_of_zeros_and_of_next_to_nothing() -> None:
    weight = torch.zeros(3, 4)
    weight[1] = torch.finfo(torch.float32).tiny / 2
    stored = quantise_rows(weight)
    assert torch.equal(stored.scale, torch.ones(3, 1))
    assert not bool(decode(stored, torch.float32).any())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    weight = torch.ones(3, 4)
    weight[2, 1] = value
    with pytest.raises(QuantisationError, match="infinity or a NaN"):
        quantise_rows(weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_scales_that_cannot_be(value: float) -> None:
    scale = torch.ones(3, 1)
    scale[1] = value
    with pytest.raises(QuantisationError, match="row scale"):
        check_scales(Int8Tensor(torch.zeros(3, 4, dtype=torch.int8), scale))


def test_checking_notices_every_kind_of_change() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    stored = quantise_rows(weight)
    assert is_from(stored, weight)
    codes, scale = stored.codes.clone(), stored.scale.clone()
    codes[5, 7] += 1 if codes[5, 7] < 0 else -1
    scale[3] *= 1.0001
    assert not is_from(Int8Tensor(codes, stored.scale), weight)
    assert not is_from(Int8Tensor(stored.codes, scale), weight)
