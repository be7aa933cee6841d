"""Frames: a step as plain values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sfumato.cli.live.frame import Cell, Frame, StepRow, cells_of, committed_cells
from sfumato.cli.live.tokens import UNKNOWN, TokenizerText
from sfumato.text.tokenizer import Tokenizer
from tests.cli.checkpoints import SMALL
from tests.cli.fakes import CONTROL, STOP, Letters, cells, frame, ids


def test_cells_say_draft_noise_confidence_and_state() -> None:
    step = StepRow([97, STOP, CONTROL], [98, 99, 100], [0.0, 2.0, math.log(2)], [True, False, True])
    first, second, third = cells_of(step, Letters())
    assert first == Cell("a", "b", 1.0, True)
    assert (second.text, second.noise, second.stop, second.accepted) == (
        "<turn|>", "c", True, False,
    )  # fmt: skip
    assert second.confidence == pytest.approx(math.exp(-2))
    assert third.control
    assert third.confidence == pytest.approx(0.5)
    assert (first.drafted, second.drafted, third.drafted) == (True, False, True)


def test_rounding_below_zero_is_no_more_than_certain() -> None:
    [cell] = cells_of(StepRow([97], [97], [-1e-7], [True]), Letters())
    assert cell.confidence == 1.0


def test_rows_of_unequal_length_are_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        cells_of(StepRow([97], [97, 98], [0.0], [True]), Letters())


def test_the_answer_ends_before_an_accepted_stop() -> None:
    sure = Cell("<turn|>", "", 1.0, True, control=True, stop=True)
    unsure = Cell("<turn|>", "", 0.2, False, control=True, stop=True)
    assert Frame((*cells("ab"), sure, *cells("c"))).answer_length == 2
    assert Frame((*cells("ab"), unsure, *cells("c"))).answer_length == 4
    assert Frame((*cells("ab"), sure, *cells("c"))).settled == 3
    assert Frame((*cells("ab"), *cells("c", 0.1, False))).settled == 2


def test_tokens_per_forward_counts_earlier_canvases() -> None:
    assert frame("abcdef").tokens_per_forward == 2.0
    assert Frame(cells("ab"), committed=10, forwards=4).tokens_per_forward == 3.0
    assert Frame((), forwards=0).tokens_per_forward == 0.0


def test_a_committed_canvas_is_cut_at_its_stop() -> None:
    done = committed_cells([*ids("hi", stop=True), *ids("rest")], Letters())
    assert "".join(cell.text for cell in done) == "hi"
    assert all(cell.accepted and cell.confidence == 1.0 for cell in done)


def small_tokens() -> TokenizerText:
    return TokenizerText(Tokenizer.from_folder(SMALL), (1, 5))


def test_pieces_of_the_small_model_join_to_its_text() -> None:
    tokenizer = Tokenizer.from_folder(SMALL)
    text = "naïve 東京 🙂, 12.5 km\n"
    encoded = tokenizer.encode_text(text)
    pieces = small_tokens().pieces(encoded)
    assert len(pieces) == len(encoded)
    assert "".join(pieces) == text
    assert "" in pieces  # a character of several tokens stands at its last


def test_half_a_character_and_ids_without_text() -> None:
    tokenizer = Tokenizer.from_folder(SMALL)
    half = tokenizer.encode_text("東")[:1]
    assert small_tokens().pieces(half) == [UNKNOWN]
    assert small_tokens().pieces([tokenizer.vocab_size + 5]) == [UNKNOWN]
    assert small_tokens().pieces([]) == []


def test_control_and_stop_tokens_are_told_apart() -> None:
    tokens = small_tokens()
    assert tokens.is_control(4)
    assert tokens.is_stop(5)
    assert not tokens.is_stop(4)
    assert not tokens.is_control(100)
    assert tokens.pieces([5]) == ["<turn|>"]
    assert Path(SMALL).is_dir()
