"""Long prompts, encoded in several passes, against the one pass they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.model.diffusion_gemma import DiffusionGemma
from tests.helpers import Shape, randomise, tiny_config


def network(cells: int | None = None) -> DiffusionGemma:
    net = DiffusionGemma(tiny_config(Shape(pattern="SSF", window=8, vision=True)))
    randomise(net, 11)
    net.requires_grad_(False)
    if cells is not None:
        net.encode_cells = cells
    return net.eval()


def prompt(rows: int, length: int) -> Tensor:
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("cells", [1, 300, 1500])
@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize("images", [False, True])
def test_several_passes_are_one(cells: int, padded: str | None, images: bool) -> None:
    ids = prompt(2, 37)
    whole, parts = network(), network(cells)
    soft, real = None, None
    if images:
        image = whole.config.image_token_id
        assert image is not None
        for row, start, length in ((0, 5, 9), (0, 20, 3), (1, 2, 4), (1, 12, 12)):
            ids[row, start : start + length] = image
        count = int((ids == image).sum())
        soft = torch.randn(count, 64, generator=torch.Generator().manual_seed(5))
    if padded is not None:
        real = torch.ones_like(ids, dtype=torch.bool)
        cut = slice(0, 2) if padded == "left" else slice(35, 37)
        real[1, cut] = False
    hidden, cache = whole.encode_hidden(ids, attention_mask=real, soft_tokens=soft)
    again, split = parts.encode_hidden(ids, attention_mask=real, soft_tokens=soft)
    seen = slice(None) if real is None else real
    torch.testing.assert_close(again[seen], hidden[seen], atol=1e-4, rtol=1e-4)
    assert split.length == cache.length
    assert split.next_position is not None
    assert cache.next_position is not None
    assert torch.equal(split.next_position, cache.next_position)
    canvas = prompt(2, 12)
    torch.testing.assert_close(
        parts.denoise(canvas, split), whole.denoise(canvas, cache), atol=2e-4, rtol=1e-4
    )


@pytest.fixture(scope="module")
def plain() -> DiffusionGemma:
    return network()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 400), st.integers(0, 30))
def test_cuts_reach_the_end_and_spare_images(
    plain: DiffusionGemma, places: list[bool], cells: int, held: int
) -> None:
    plain.encode_cells = cells
    cuts = plain._cuts(torch.tensor([places]), held)
    assert cuts[-1] == len(places)
    assert cuts == sorted(set(cuts))
    assert cuts[0] > 0
    for cut in cuts[:-1]:
        assert not (places[cut - 1] and places[cut])
    if not any(places):
        most = max(1, cells // (held + len(places)))
        starts = [0, *cuts[:-1]]
        assert all(end - start <= most for start, end in zip(starts, cuts, strict=True))


def test_a_pass_that_fails_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(300)
    ids = prompt(1, 40)
    cache = net.encode(ids[:, :5])
    before = cache.fork()
    passes = 0
    plain = DiffusionGemma.encode_pass

    def failing(self: DiffusionGemma, *arguments: Any) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise MemoryError
        return plain(self, *arguments)

    monkeypatch.setattr(DiffusionGemma, "encode_pass", failing)
    with pytest.raises(MemoryError):
        net.encode(ids, cache)
    assert passes == 3
    assert cache.length == before.length == 5
    assert cache.layers == before.layers
    assert torch.equal(net.denoise(prompt(1, 12), cache), net.denoise(prompt(1, 12), before))
    monkeypatch.undo()
    assert net.encode(ids, cache).length == 45
