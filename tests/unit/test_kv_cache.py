"""What a cache holds: slots that grow in place, 8 bits, and the bytes of the released shape."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sfumato
from scripts.measure_cache import PASSES, POSITIONS, RELEASED, error, fill, float8, int8
from sfumato.config.model import TextConfig
from sfumato.config.parse import parse_config
from sfumato.errors import InputError
from sfumato.kv.narrow import narrow, widen
from sfumato.kv.slots import PAGE, SPARE, Pages, Strip
from sfumato.model.diffusion_gemma import DiffusionGemma
from tests.helpers import Shape, randomise, tiny_config
from tests.plain_cache import plain_twin


def slots(count: int, seed: int = 0, width: int = 4) -> Tensor:
    return torch.randn(2, 3, count, width, generator=torch.Generator().manual_seed(seed))


def released() -> TextConfig:
    return parse_config(json.loads(Path(RELEASED).read_text(encoding="utf-8"))).text


def whole(pages: Pages, longest: int = 7) -> Tensor:
    return torch.cat([piece for _, piece in pages.pieces(longest)], dim=2)


# ---- growing in place


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 400))
def test_runs_hold_what_they_were_given(counts: list[int], most: int) -> None:
    parts = [slots(count, index) for index, count in enumerate(counts)]
    with torch.no_grad():
        strip, pages = Strip.of(parts[0]), Pages().extended(parts[0], most)
        seen = [(strip, strip.view().clone())]
        for part in parts[1:]:
            strip, pages = strip.extended(part, most), pages.extended(part, most)
            seen.append((strip, strip.view().clone()))
    assert torch.equal(strip.view(), torch.cat(parts, dim=2))
    assert torch.equal(whole(pages), torch.cat(parts, dim=2))
    starts = [start for start, _ in pages.pieces(7)]
    assert starts == sorted(set(starts))
    for earlier, before in seen:  # a run that has been extended still holds what it held
        assert torch.equal(earlier.view(), before)
    assert strip.capacity <= max(len(strip) + SPARE, most)
    assert sum(page.capacity for page in pages.pages) <= max(len(pages), min(most, 2 * len(pages)))


@torch.no_grad()
def test_tokens_are_appended_without_copying_what_is_there() -> None:
    strip, pages = Strip.of(slots(200)), Pages().extended(slots(200), 10_000)
    strips, first = [strip.extended(slots(1), 10_000)], pages.pages[0].memory
    for _ in range(90):
        strips.append(strips[-1].extended(slots(1), 10_000))
        pages = pages.extended(slots(1), 10_000)
    assert len({id(one.memory) for one in strips}) == 1
    assert pages.pages[0].memory is first
    assert len(pages.pages) == 2


@torch.no_grad()
def test_a_window_moves_on_in_the_memory_it_has() -> None:
    window = 100
    strip, copies = Strip.of(slots(window)), 0
    for step in range(200):
        before = strip.memory
        strip = strip.extended(slots(1, step), window + SPARE)
        strip = strip.without(len(strip) - window)
        copies += strip.memory is not before
        assert strip.capacity <= window + SPARE
    assert copies <= math.ceil(200 / SPARE)
    expected = torch.cat([slots(1, step) for step in range(100, 200)], dim=2)
    assert torch.equal(strip.view(), expected)


@torch.no_grad()
def test_of_two_forks_one_grows_in_place_and_the_other_copies() -> None:
    strip = Strip.of(slots(8)).extended(slots(1), 100)
    pages = Pages().extended(slots(8), 100).extended(slots(1), 100)
    one, two = strip.extended(slots(2, 1), 100), strip.extended(slots(2, 2), 100)
    assert one.memory is strip.memory
    assert two.memory is not strip.memory
    assert torch.equal(one.view()[:, :, 9:], slots(2, 1))
    assert torch.equal(two.view()[:, :, 9:], slots(2, 2))
    left, right = pages.extended(slots(2, 1), 100), pages.extended(slots(2, 2), 100)
    assert torch.equal(whole(left)[:, :, 9:], slots(2, 1))
    assert torch.equal(whole(right)[:, :, 9:], slots(2, 2))
    assert len(right.pages) == len(left.pages) + 1


def test_nothing_is_written_where_gradients_or_inference_tensors_forbid_it() -> None:
    with torch.inference_mode():
        strip = Strip.of(slots(8)).extended(slots(1), 100)
    with torch.no_grad():
        assert strip.extended(slots(1), 100).memory is not strip.memory
        free = Strip.of(slots(8)).extended(slots(1), 100)
    leaf = slots(1).requires_grad_()
    grown = free.extended(leaf, 100)
    assert grown.memory is not free.memory
    assert len(grown) == grown.capacity
    grown.view().sum().backward()
    assert leaf.grad is not None


def test_a_part_of_something_larger_does_not_keep_it() -> None:
    assert Strip.of(slots(64)[:, :, :2]).nbytes == slots(2).nbytes
    rows = Strip.of(slots(6)).rows(torch.tensor([False, True]))
    assert torch.equal(rows.view(), slots(6)[1:])


# ---- 8 bits


@given(st.integers(0, 10_000), st.floats(-30, 30), st.integers(1, 64))
def test_no_value_is_further_off_than_half_a_step(seed: int, exponent: float, width: int) -> None:
    x = slots(5, seed, width) * 10.0**exponent
    most = x.abs().amax(-1, keepdim=True)
    assert bool(((widen(narrow(x), x.dtype) - x).abs() <= most / 254 * 1.0001).all())
    assert narrow(x).shape == (2, 3, 5, width + 4)


def test_zeros_stay_zeros_and_what_is_no_number_is_said_so() -> None:
    x = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    x[0, 0, 1, 2], x[0, 0, 2, 3] = torch.nan, -torch.inf
    back = widen(narrow(x), x.dtype)
    assert back.dtype == torch.bfloat16
    assert back.isnan().all(-1).tolist() == [[[False, True, True, False]]]
    assert not back[0, 0, [0, 3]].any()


def test_integers_are_nearer_than_float8() -> None:
    x = torch.randn(1, 2, 64, 512, generator=torch.Generator().manual_seed(1))
    assert error(int8(x), x) < 0.009
    assert error(float8(x), x) > 0.02


@torch.inference_mode()
def test_an_8_bit_cache_is_half_as_large_and_nearly_as_exact() -> None:
    net = DiffusionGemma(tiny_config(Shape(pattern="SSF", window=24, head_dim=64, canvas=8)))
    randomise(net, 3)
    net = net.to(torch.bfloat16).eval()
    prompt, canvas = (
        torch.randint(3, 90, (2, size), generator=torch.Generator().manual_seed(size))
        for size in (40, 8)
    )
    exact = net.encode(prompt)
    net.cache_dtype = "int8"
    small = net.encode(prompt[:, 30:], net.encode(prompt[:, :30]))
    net.cache_dtype = None
    net.derived_bytes = 0
    least = net.encode(prompt)
    assert small.nbytes < 0.75 * least.nbytes < exact.nbytes
    fork = small.fork()
    logits = net.denoise(canvas, fork)
    assert torch.equal(logits, net.denoise(canvas, small))
    far = (logits - net.denoise(canvas, exact)).norm() / logits.norm()
    assert 0 < float(far) < 0.1
    chosen = net.denoise(canvas[1:], small.select(torch.tensor([False, True])))
    torch.testing.assert_close(chosen, logits[1:], atol=0.1, rtol=0.1)


def test_an_unknown_dtype_names_the_choices() -> None:
    with pytest.raises(InputError, match="a cache cannot hold 'fp8'") as caught:
        sfumato.load(cache_dtype="fp8")
    assert caught.value.hint is not None
    assert "'int8'" in caught.value.hint
    net = DiffusionGemma(tiny_config(Shape(pattern="F")))
    net.cache_dtype = "float8"
    with pytest.raises(InputError, match="a cache cannot hold 'float8'"):
        net.new_cache()


# ---- the whole cache


@pytest.mark.parametrize(
    "passes",
    [
        PASSES,
        [POSITIONS - 100] + [1] * 100,
        [POSITIONS - 17 * 20] + [17] * 20,
    ],
    ids=["a prompt, then canvases", "tokens", "odd passes"],
)
def test_the_released_shape_fits_its_bar_at_its_full_context(passes: Sequence[int]) -> None:
    cache = fill(released(), None, passes)
    assert cache.length == sum(passes) == POSITIONS
    assert 2.68e9 < cache.nbytes <= 2.9e9


def test_8_bits_halve_it() -> None:
    assert fill(released(), "int8", [POSITIONS - 512, 256, 256]).nbytes <= 1.47e9


def test_short_prefixes_hold_their_derived_keys_and_long_ones_give_them_up() -> None:
    kept = [fill(released(), None, passes).layers[5].keys for passes in ([8192], [8192, 4800])]
    assert all(keys is not None for keys in kept)
    for passes in ([13_200], [8192, 5000], [8192, 5000, 1]):
        cache = fill(released(), None, passes)
        assert cache.layers[5].keys is None
        assert cache.nbytes < 10_240 * (cache.length + PAGE) + 204_800 * (1023 + SPARE) + 1e6


@torch.inference_mode()
def test_bytes_are_what_the_tensors_take() -> None:
    net = DiffusionGemma(tiny_config(Shape(pattern="SF", window=8)))
    cache = net.new_cache()
    assert cache.nbytes == 0
    net.encode(torch.full((1, 40), 7), cache)
    sliding, full = 2 * 2 * 16, 3 * 32  # keys and values; raw keys and the derived pair
    assert cache.nbytes == 4 * ((7 + SPARE) * sliding + 40 * full) + 8 * 40 + 8


@torch.inference_mode()
def test_a_deep_copy_is_a_cache_of_its_own() -> None:
    net = DiffusionGemma(tiny_config(Shape(pattern="SF", window=8)))
    randomise(net, 2)
    cache = net.encode(torch.full((1, 20), 7))
    other = copy.deepcopy(cache)
    net.encode(torch.full((1, 3), 8), cache)
    twin = plain_twin(net)
    canvas = torch.arange(10, 17)[None]
    expected = twin.denoise(canvas, twin.encode(torch.full((1, 20), 7)))
    assert torch.equal(net.denoise(canvas, other), expected)
