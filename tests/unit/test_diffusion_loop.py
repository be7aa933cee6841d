"""The loop over a network that is a table: what one row gets cannot hang on rounding."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import CommitEvent, Generation, StepEvent
from sfumato.diffusion.loop import Watchers, generate
from sfumato.diffusion.samplers import draws_for
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma

VOCAB, LENGTH = 23, 5
SETTINGS = GenerationConfig(
    max_new_tokens=4 * LENGTH,
    max_denoising_steps=30,
    entropy_bound=1.0,
    confidence_threshold=0.5,
    eos_token_id=(),
)


class TableNetwork:
    """Logits are looked up by the canvas's own ids, so no arithmetic joins rows or positions.

    Each id believes in itself, the larger the surer: a canvas settles when it has met sure ids.
    """

    def __init__(self) -> None:
        self.table = torch.diag(torch.linspace(1.0, 9.0, VOCAB))
        text = SimpleNamespace(vocab_size=VOCAB)
        self.config = SimpleNamespace(text=text, canvas_length=LENGTH)
        self.dtype, self.kernels = torch.float32, None
        self.encoded: list[Tensor] = []
        self.computed = 0  # rows given to `denoise`, over all steps

    def denoise(self, canvas: Tensor, cache: KVCache, believed: Tensor | None) -> Tensor:
        assert cache.batch_size == len(canvas)
        self.computed += len(canvas)
        return self.table[canvas]

    def encode(self, ids: Tensor, cache: KVCache) -> None:
        self.encoded.append(ids)


class TableCache:
    """The number of rows is all this network asks of a prefix."""

    def __init__(self, rows: int) -> None:
        self.batch_size = rows

    def select(self, rows: Tensor) -> TableCache:
        return TableCache(int(rows.sum()))


def run(
    seed: Any,
    rows: int,
    settings: GenerationConfig = SETTINGS,
    network: TableNetwork | None = None,
    **watch: Any,
) -> Generation:
    cache = TableCache(rows)
    return generate(
        cast(DiffusionGemma, network or TableNetwork()),
        cast(KVCache, cache),
        settings,
        draws_for(seed, torch.device("cpu")),
        Watchers(**watch),
    )


def test_a_row_with_its_own_seed_gets_what_it_would_get_alone() -> None:
    """On every canvas, though its neighbours take more steps on the ones before."""
    seeds = list(range(6))
    together = run(seeds, 6)
    assert len(set(together.stats.steps)) > 1  # rows do wait for each other
    for row, seed in enumerate(seeds):
        alone = run(seed, 1)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.stats.steps[0] == together.stats.steps[row]


def test_one_generator_for_all_never_leaves_a_row_out() -> None:
    """As in the reference: its batches come out equal only so."""
    draws = draws_for(3, torch.device("cpu"))
    assert not draws.apart
    assert draws.only(torch.tensor([True, True])) is draws
    with pytest.raises(AssertionError):
        draws.only(torch.tensor([True, False]))


def test_a_row_that_is_left_out_keeps_its_generator() -> None:
    draws, alone = draws_for([3, 4], torch.device("cpu")), draws_for(4, torch.device("cpu"))
    first = draws.only(torch.tensor([True, False]))
    probabilities = torch.softmax(torch.randn(1, 4, 7), -1)
    assert first.canvas(1, 4, 7).shape == (1, 4)
    assert first.sample(probabilities).shape == (1, 4)
    assert torch.equal(draws.canvas(2, 4, 7)[1], alone.canvas(1, 4, 7)[0])


def test_events_hold_the_canvas_of_a_finished_row() -> None:
    events: list[StepEvent] = []
    run([1, 2, 3], 3, SETTINGS.replace(max_new_tokens=LENGTH), on_step=events.append)
    assert bool(events[-1].finished.all())
    waited = 0
    for before, after in pairwise(events):
        held = before.finished
        waited += int(held.sum())
        assert torch.equal(before.current[held], after.current[held])
        assert torch.equal(before.argmax[held], after.argmax[held])
    assert waited  # some row did finish before the others


def test_finished_rows_are_not_computed_where_rows_draw_apart() -> None:
    one = SETTINGS.replace(max_new_tokens=LENGTH)
    network = TableNetwork()
    out = run([1, 2, 3, 4, 5], 5, one, network)
    assert network.computed == sum(out.stats.steps) < 5 * max(out.stats.steps)
    together = TableNetwork()
    out = run(1, 5, one, together)
    assert together.computed == 5 * max(out.stats.steps)


def test_rows_that_have_stopped_are_not_computed_where_rows_draw_apart() -> None:
    """Nor encoded: what others write after them is as if they had never been there."""
    settings = SETTINGS.replace(eos_token_id=(20,), pad_token_id=0)
    seeds = list(range(8))
    network = TableNetwork()
    events: list[StepEvent] = []
    commits: list[CommitEvent] = []
    out = run(seeds, 8, settings, network, on_step=events.append, on_commit=commits.append)
    canvases = out.stats.canvases
    assert len(set(canvases)) > 1
    assert network.computed == sum(out.stats.steps)
    assert [len(ids) for ids in network.encoded] == [
        sum(count > index for count in canvases) for index in range(1, max(canvases))
    ]
    for row, seed in enumerate(seeds):
        alone = run(seed, 1, settings)
        assert alone.tokens[0] == out.tokens[row]
        assert (alone.stats.steps[0], alone.stats.canvases[0]) == (
            out.stats.steps[row],
            canvases[row],
        )
    shown = [(event.canvas_index, event.current) for event in events]
    shown += [(event.canvas_index, event.tokens) for event in commits]
    for index, canvas in shown:
        assert len(canvas) == 8
        assert not bool(canvas[torch.tensor(canvases) <= index].any())
    for event in events:
        assert bool(event.finished[torch.tensor(canvases) <= event.canvas_index].all())


def test_with_one_generator_rows_that_have_stopped_are_padding() -> None:
    settings = SETTINGS.replace(eos_token_id=(20,), pad_token_id=1)
    network = TableNetwork()
    out = run(1, 8, settings, network)
    assert len(set(out.stats.canvases)) > 1
    for index, ids in enumerate(network.encoded, start=1):
        assert len(ids) == 8
        for row, written in enumerate(out.tokens):
            own = written[(index - 1) * LENGTH : index * LENGTH]
            assert ids[row].tolist() == own + [1] * (LENGTH - len(own))


@pytest.mark.parametrize("seed", [4, [4, 5, 6]])
def test_a_canvas_that_is_not_done_starts_anew(seed: Any) -> None:
    rows = 3
    events: list[StepEvent] = []
    settings = SETTINGS.replace(max_denoising_steps=7, restart_steps=3, confidence_threshold=1e-9)
    network = TableNetwork()
    seen: list[tuple[Tensor, bool]] = []
    plain = network.denoise

    def denoise(canvas: Tensor, cache: KVCache, believed: Tensor | None) -> Tensor:
        seen.append((canvas.clone(), believed is None))
        return plain(canvas, cache, believed)

    network.denoise = denoise  # type: ignore[method-assign]
    found = run(seed, rows, settings.replace(max_new_tokens=LENGTH), network, on_step=events.append)
    assert found.stats.steps == [7] * rows
    assert [first for _, first in seen] == [True, False, False, True, False, False, True]
    for last, first in ((2, 3), (5, 6)):  # noise, not what was found
        assert not torch.equal(seen[first][0], events[last].current)


def test_a_finished_row_keeps_its_canvas_when_others_start_anew() -> None:
    settings = SETTINGS.replace(max_new_tokens=LENGTH, max_denoising_steps=12, restart_steps=2)
    seeds = list(range(8))
    together = run(seeds, 8, settings)
    steps = together.stats.steps
    assert min(steps) <= 2 < max(steps)
    for row, seed in enumerate(seeds):
        alone = run(seed, 1, settings)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.stats.steps[0] == steps[row]


def test_restarts_beyond_the_last_step_change_nothing() -> None:
    assert run(2, 3, SETTINGS).tokens == run(2, 3, SETTINGS.replace(restart_steps=30)).tokens
