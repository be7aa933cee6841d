"""Accepting positions: kernels and torch agree exactly, ties and what is no number included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.ops.accept import accept
from sfumato.ops.kernels import Kernels

SPECIAL = (0.0, -0.0, -1e-7, 1e-42, float("inf"), float("nan"))


@given(
    st.integers(0, 4),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.1, 0.5, 3.0, 100.0]),
    st.integers(1, 64),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_accepting_is_the_reference(
    kernels: Kernels,
    rows: int,
    length: int,
    bound: float,
    levels: int,
    special: bool,
    seed: int,
) -> None:
    """With few `levels` nearly every entropy is a tie."""
    generator = torch.Generator().manual_seed(seed)
    entropies = (torch.rand(rows, length, generator=generator) * levels).round() / levels
    if special and rows:
        for number, value in enumerate(SPECIAL):
            entropies[number % rows, (seed + 7 * number) % length] = value
    sampled, fresh = (torch.randint(999, (rows, length), generator=generator) for _ in range(2))
    found = accept(entropies, sampled, fresh, bound, kernels)
    expected = accept(entropies, sampled, fresh, bound)
    assert [one.dtype for one in found] == [torch.bool, torch.int64]
    assert all(map(torch.equal, found, expected))


def test_views_are_taken(kernels: Kernels) -> None:
    entropies = torch.rand(6, 10, generator=torch.Generator().manual_seed(1)).t()
    ids = torch.arange(120).view(10, 12)[:, :6]
    found, expected = accept(entropies, ids, -ids, 0.4, kernels), accept(entropies, ids, -ids, 0.4)
    assert all(map(torch.equal, found, expected))


def test_the_module_checks_what_it_is_given(kernels: Kernels) -> None:
    entropies, ids = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    for wrong in (ids[:, :4], ids.int(), ids[:1]):
        with pytest.raises(ValueError, match="fresh"):
            accept(entropies, ids, wrong, 0.1, kernels)
