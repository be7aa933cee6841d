"""Grouped products against a loop over rows, their gradients, and the experts made of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.model.experts import Experts, form_for
from sfumato.ops.grouped import grouped_linear, grouped_outer, permute_rows
from tests.helpers import Shape, tiny_config


def normal(*shape: int, seed: int, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return made.requires_grad_(grad)


sizes = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_each_row_meets_the_matrix_of_its_group(
    counts: list[int], wide: int, out: int, seed: int
) -> None:
    groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x, weight = normal(len(groups), wide, seed=seed), normal(len(counts), out, wide, seed=seed + 1)
    ends = torch.tensor(counts).cumsum(0)
    expected = torch.einsum("roi,ri->ro", weight[groups], x)
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected)
    left = normal(len(groups), out, seed=seed + 2)
    sums = torch.zeros(len(counts), out, wide, dtype=torch.float64)
    for group, row, other in zip(groups, left, x, strict=True):
        sums[group] += torch.outer(row, other)
    torch.testing.assert_close(grouped_outer(left, x, ends), sums)


@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 5], [5, 0, 0]])
def test_gradients_are_those_of_finite_differences(counts: list[int]) -> None:
    ends = torch.tensor(counts).cumsum(0)
    x, weight = normal(5, 3, seed=1, grad=True), normal(len(counts), 2, 3, seed=2, grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grouped_linear(a, b, ends), (x, weight))
    order = torch.tensor([4, 1, 9, 0, 3, 2, 8, 7, 6, 5])
    rows = normal(5, 3, seed=3, grad=True)
    assert torch.autograd.gradcheck(
        lambda a: permute_rows(a, order, torch.argsort(order), 2), (rows,)
    )
    again = normal(10, 3, seed=3, grad=True)
    assert torch.autograd.gradcheck(
        lambda a: permute_rows(a, order, torch.argsort(order), 1), (again,)
    )


@pytest.mark.parametrize("op", ["linear", "outer", "permute"])
def test_the_registrations_hold_what_torch_asks_of_them(op: str) -> None:
    ends = torch.tensor([2, 2, 5])
    order = torch.tensor([4, 1, 0, 3, 2])
    calls = {
        "linear": (grouped_linear, (normal(5, 3, seed=1, grad=True),
                                    normal(3, 2, 3, seed=2, grad=True), ends)),
        "outer": (grouped_outer, (normal(5, 3, seed=1), normal(5, 2, seed=2), ends)),
        "permute": (permute_rows, (normal(5, 3, seed=1, grad=True), order,
                                   torch.argsort(order), 1)),
    }  # fmt: skip
    function, arguments = calls[op]
    checked = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(function, arguments, test_utils=checked)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("crowded", [False, True])
def test_all_forms_of_the_experts_are_one_sum(top_k: int, crowded: bool) -> None:
    config = tiny_config(Shape(experts=4, top_k=top_k)).text
    experts = Experts(config).double()
    for index, parameter in enumerate(experts.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=index) / 4)
    x = normal(17, config.hidden_size, seed=7, grad=True)
    weights = normal(17, top_k, seed=8).abs().requires_grad_()
    order = normal(17, 4, seed=9).argsort(dim=1)
    chosen = torch.arange(top_k).expand(17, -1) if crowded else order[:, :top_k]
    found = []
    for mode in ("loop", "dense", "grouped"):
        experts.mode = mode
        out = experts(x, weights, chosen)
        inputs = (x, weights, *experts.parameters())
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same)


def test_the_form_by_size_and_device() -> None:
    narrow = tiny_config(Shape(experts=4, expert_width=256)).text
    wide = tiny_config(Shape(experts=4, expert_width=257)).text
    cpu, accelerator = torch.device("cpu"), torch.device("meta")
    assert form_for(narrow, cpu, may_be_dense=True) == "dense"
    assert form_for(narrow, cpu, may_be_dense=False) == "loop"
    assert form_for(wide, cpu, may_be_dense=True) == "loop"
    assert form_for(wide, accelerator, may_be_dense=True) == "grouped"
    assert form_for(narrow, accelerator, may_be_dense=False) == "grouped"
