"""The mixture of experts: sizes, empty experts, one expert taking all, order of the sum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.ops.experts import declines, experts, reference
from sfumato.ops.kernels import Kernels, give, reason_for_none
from sfumato.ops.weight import Weight, int8, nvfp4, panels, rows
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import Nvfp4Tensor, quantise

many = settings(max_examples=25, deadline=None)


def _weights(count: int, hidden: int, inner: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(count, 2 * inner, hidden, generator=generator) / hidden**0.5
    down = torch.randn(count, hidden, inner, generator=generator) / inner**0.5
    return gate_up.bfloat16(), down.bfloat16()


def _routed(rows_: int, slots: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows_, count, generator=generator)
    return scores.topk(slots).indices, torch.rand(rows_, slots, generator=generator)


def _in_rows(gate_up: Tensor, down: Tensor) -> tuple[Weight, Weight]:
    gate, values = gate_up.chunk(2, dim=1)
    return rows(gate, values), rows(down)


@given(
    st.integers(1, 90), st.integers(1, 9), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99)
)
@many
def test_every_layout_is_the_reference(
    kernels: Kernels, length: int, count: int, tens: int, half: int, seed: int
) -> None:
    slots = min(count, 2)
    gate_up, down = _weights(count, 2 * half, 16 * tens, seed)
    chosen, shares = _routed(length, slots, count, seed)
    x = torch.randn(length, 2 * half, generator=torch.Generator().manual_seed(seed + 1))
    layouts = (
        _in_rows(gate_up, down),
        _in_rows(gate_up.float(), down.float()),
        (panels(gate_up, gated=True), panels(down)),
    )
    for up, back in layouts:
        expected = reference(x, chosen, shares, up, back)
        found = experts(x, chosen, shares, up, back, kernels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bf16(kernels: Kernels) -> None:
    gate_up, down = _weights(8, 64, 32, 1)
    chosen, shares = _routed(50, 2, 8, 1)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    up, back = _in_rows(gate_up, down)
    exact = reference(x.float(), chosen, shares, up, back)
    found = experts(x, chosen, shares, up, back, kernels)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


def test_nvfp4(kernels: Kernels) -> None:
    gate_up, down = _weights(4, 64, 32, 3)
    gate, values = gate_up.float().chunk(2, dim=1)
    up = nvfp4(
        [quantise(gate.contiguous())], [quantise(3 * values)]
    )  # halves with their own scales
    back = nvfp4([quantise(down.float())])
    chosen, shares = _routed(40, 2, 4, 3)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(4))
    expected = reference(x, chosen, shares, up, back)
    found = experts(x, chosen, shares, up, back, kernels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nvfp4_of_separate_experts_is_that_of_stacks(kernels: Kernels) -> None:
    """As checkpoints have them: each matrix a tensor of its own, with a scale of its own."""
    sizes = torch.tensor([1.0, 8.0, 0.5, 3.0, 1.0])[:, None, None]
    gate_up, down = (one.float() * sizes for one in _weights(5, 64, 32, 3))
    stacks = [quantise(one.contiguous()) for one in (*gate_up.chunk(2, dim=1), down)]
    gate, values, back = (
        [Nvfp4Tensor(*one) for one in zip(s.packed, s.scale, s.tensor_scale, strict=True)]
        for s in stacks
    )
    chosen, shares = _routed(90, 3, 5, 3)
    x = torch.randn(90, 64, generator=torch.Generator().manual_seed(4))
    whole = nvfp4(stacks[:1], stacks[1:2]), nvfp4(stacks[2:])
    apart = nvfp4(gate, values), nvfp4(back)
    assert [one.matrices for one in (*whole, *apart)] == [5] * 4
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(whole, apart, strict=True))
    found = experts(x, chosen, shares, *apart, kernels)
    assert torch.equal(found, experts(x, chosen, shares, *whole, kernels))
    torch.testing.assert_close(
        found, reference(x, chosen, shares, *apart), rtol=1e-5, atol=1e-5 * float(found.abs().max())
    )


def _in_nvfp4(gate_up: Tensor, down: Tensor) -> tuple[Weight, Weight]:
    halves = gate_up.float().flatten(0, 1).view(len(gate_up), 2, -1, gate_up.shape[-1])
    gate, values, back = (
        [quantise(one) for one in part] for part in (halves[:, 0], halves[:, 1], down.float())
    )
    return nvfp4(gate, values), nvfp4(back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 64, 65, 257, 700])
@pytest.mark.parametrize("layout", [_in_rows, _in_nvfp4])
def test_one_expert_takes_all_rows_and_others_none(
    kernels: Kernels,
    layout: Callable[..., tuple[Weight, Weight]],
    length: int,
    dtype: torch.dtype,
) -> None:
    up, back = layout(*_weights(6, 32, 16, 5))
    chosen = torch.full((length, 1), 3)
    shares = torch.rand(length, 1, generator=torch.Generator().manual_seed(1))
    x = torch.randn(length, 32, generator=torch.Generator().manual_seed(6)).to(dtype)
    expected = reference(x.float(), chosen, shares, up, back)
    found = experts(x, chosen, shares, up, back, kernels)
    assert found.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected, rtol=near, atol=near)
    last = slice(length - 1, length)
    assert torch.equal(experts(x[last], chosen[last], shares[last], up, back, kernels), found[last])


def test_an_expert_chosen_twice_counts_twice(kernels: Kernels) -> None:
    up, back = _in_rows(*_weights(3, 32, 16, 7))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(8))
    once = experts(x, torch.full((5, 1), 2), torch.full((5, 1), 1.0), up, back, kernels)
    twice = experts(x, torch.full((5, 2), 2), torch.full((5, 2), 0.5), up, back, kernels)
    torch.testing.assert_close(once, twice)


@given(st.integers(2, 200), st.integers(0, 99))
@many
def test_a_row_has_its_bits_alone_and_with_any_threads(
    kernels: Kernels, length: int, seed: int
) -> None:
    up, back = _in_rows(*_weights(5, 40, 32, seed))
    chosen, shares = _routed(length, 3, 5, seed)
    x = torch.randn(length, 40, generator=torch.Generator().manual_seed(seed + 1))
    before = torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            own = x.to(dtype)
            torch.set_num_threads(1)
            whole = experts(own, chosen, shares, up, back, kernels)
            torch.set_num_threads(4)
            assert torch.equal(experts(own, chosen, shares, up, back, kernels), whole)
            at = slice(length // 2, length // 2 + 1)
            alone = experts(own[at], chosen[at], shares[at], up, back, kernels)
            assert torch.equal(alone[0], whole[length // 2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("layout", "inner", "hidden"),
    [
        *((_in_rows, *sizes) for sizes in ((528, 16), (16, 256), (16, 272), (32, 330))),
        *((_in_nvfp4, *sizes) for sizes in ((528, 16), (16, 256), (16, 272), (32, 336))),
    ],
)
def test_a_row_has_its_bits_where_memory_cuts(
    kernels: Kernels, layout: Callable[..., tuple[Weight, Weight]], inner: int, hidden: int
) -> None:
    """The rows, since so much is between the products, or the columns, since parts are so many."""
    up, back = layout(*_weights(9, hidden, inner, 1))
    chosen, shares = _routed(3000, 8, 9, 2)
    x = torch.randn(3000, hidden, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = experts(x, chosen, shares, up, back, kernels)
    exact = reference(x.float(), chosen, shares, up, back)
    torch.testing.assert_close(whole.float(), exact, rtol=2e-2, atol=2e-2)
    for begin, end in ((0, 1), (37, 102), (990, 1010), (1490, 1510), (1990, 2010), (2999, 3000)):
        at = slice(begin, end)
        assert torch.equal(experts(x[at], chosen[at], shares[at], up, back, kernels), whole[at])


@pytest.mark.parametrize("wide", [16, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_in_may_be_wider_or_narrower(
    kernels: Kernels, dtype: torch.dtype, wide: int
) -> None:
    gate_up, down = _weights(4, 64, 32, 3)
    down = down[:, :1].expand(-1, wide, -1).contiguous()
    chosen, shares = _routed(40, 2, 4, 3)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(4)).to(dtype)
    up, back = _in_rows(gate_up, down)
    out = torch.empty(40, wide, dtype=dtype)
    given = (give(one) for one in (x, chosen, shares))
    weights = (up.native(kernels), back.native(kernels))
    kernels.native.experts(kernels.name, *given, *weights, give(out), kernels.threads)
    found = out.float()
    assert torch.equal(found, found[:, :1].expand_as(found)), "all columns are the same"
    gate, values = (x.float() @ gate_up.float().mT).chunk(2, dim=-1)
    active = functional.gelu(gate, approximate="tanh") * values  # [experts, rows, inner]
    parts = (active * down[:, :1].float()).sum(-1)
    expected = (parts.T.gather(1, chosen) * shares).sum(1)
    torch.testing.assert_close(found[:, 0], expected, rtol=2e-2, atol=2e-2)


LEFT = """
import sys
from pathlib import Path
import torch
from sfumato.ops.experts import experts
from sfumato.ops.kernels import Kernels
from sfumato.ops.weight import rows

def held():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in l)
    return int(line.split()[1]) * 1024

kernels = Kernels(sys.argv[1])
up = rows(torch.rand(9, 272, 128), torch.rand(9, 272, 128))
work = (torch.rand(2800, 128), torch.randint(9, (2800, 8)), torch.rand(2800, 8), up)
down = rows(torch.rand(9, 128, 272))
whole = experts(*work, down, kernels)
before = held()
kernels.native.give_back_scratch()
print(before - held(), torch.equal(experts(*work, down, kernels), whole))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(reason_for_none() is not None, reason="there are no kernels here")
def test_what_many_rows_took_can_be_given_back() -> None:
    """24 MB between the products and 11 of parts, in a process of its own with a heap to match."""
    out = subprocess.run(
        [sys.executable, "-c", LEFT, "portable"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) > 32e6
    assert out[1] == "True"


def test_an_expert_that_is_not_there_is_refused(kernels: Kernels) -> None:
    up, back = _in_rows(*_weights(3, 32, 16, 9))
    x, shares = torch.zeros(2, 32), torch.ones(2, 1)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="not there"):
            experts(x, torch.full((2, 1), wrong), shares, up, back, kernels)


def test_eight_bits_beside_another_format_are_refused(kernels: Kernels) -> None:
    up, _ = _in_nvfp4(*_weights(1, 32, 16, 1))
    back = int8(quantise_rows(torch.randn(32, 16)))
    x, chosen = torch.zeros(2, 32), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="8 bits or neither"):
        experts(x, chosen, torch.ones(2, 1), up, back, kernels)


def test_reasons_to_decline() -> None:
    gate_up, down = _weights(2, 32, 16, 1)
    up, back = _in_rows(gate_up, down)
    assert declines(torch.float32, up, back) is None
    assert "float16" in str(declines(torch.float16, up, back))
    assert "f32_rows" in str(declines(torch.float32, up, rows(down.float())))
    with pytest.raises(InputError, match="16s"):
        _in_rows(gate_up[:, :24], down)
