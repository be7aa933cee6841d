"""Answering prompts to calibrate: what is noted, and of which rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato import api
from sfumato.diffusion.events import Generation
from sfumato.diffusion.loop import generate
from sfumato.evaluation.calibrate import Prompts, calibrate
from sfumato.weights.moments import Moments
from tests.unit.evaluation_models import tiny_model

TEXTS = ("One", "Three of them", "And a longer one of seven words", "Four", "five", "6")


class Sums:
    """Notes moments in fp64, in memory, and how many rows they are of."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Tensor] = {}
        self.rows: dict[tuple[str, int], int] = defaultdict(int)

    def note(self, name: str, index: int, rows: Tensor) -> None:
        wide = rows.double()
        self.moments[name, index] = self.moments.get((name, index), 0) + wide.t() @ wide
        self.rows[name, index] += len(rows)


def noted(model: api.Model, batch_size: int) -> Sums:
    sums = Sums()
    calibrate(model, Prompts(TEXTS, 3, batch_size), cast(Moments, sums))
    return sums


@pytest.mark.parametrize("loop", ["plain", "fast"])
def test_a_batch_notes_what_its_rows_note_alone(
    tmp_path: Path, loop: api.Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several canvases: no padding, and nothing of a row that has stopped."""
    model = tiny_model(tmp_path)
    length, size = model.config.canvas_length, model.config.text.vocab_size
    settings = model.generation_config.replace(
        max_new_tokens=3 * length,
        max_denoising_steps=4,
        eos_token_id=tuple(range(0, size, 20)),
    )
    model = replace(model, generation_config=settings, loop=loop)
    canvases: set[int] = set()

    def told(*arguments: Any) -> Generation:
        out = generate(*arguments)
        canvases.update(out.stats.canvases)
        return out

    monkeypatch.setattr(api, "generate", told)
    together = noted(model, 6)
    assert len(canvases) > 1, "rows are to stop apart"
    alone = noted(model, 1)
    assert together.rows == alone.rows
    for key, wanted in alone.moments.items():
        difference = float((together.moments[key] - wanted).abs().max())
        assert difference <= 1e-3 * float(wanted.abs().max())


def test_the_plain_loop_answers_as_many_rows_as_its_logits_have_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(tiny_model(tmp_path), loop="plain")
    cells = model.config.canvas_length * model.config.text.vocab_size
    monkeypatch.setattr(api, "ANSWER_LOGITS", 2 * cells)
    done: list[int] = []
    sums = cast(Moments, Sums())
    calibrate(model, Prompts(TEXTS), sums, lambda count, _: done.append(count))
    assert done == [2, 4, 6]
    done.clear()
    with torch.inference_mode():
        calibrate(replace(model, loop="fast"), Prompts(TEXTS), sums, lambda n, _: done.append(n))
    assert done == [6]
