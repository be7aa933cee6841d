"""Batches: pure functions of (seed, step), shaped as promised, and true to the chat template."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InputError, TrainingError
from sfumato.text.chat import Chat, Message
from sfumato.text.template import ChatTemplate
from sfumato.training.config import FamilyConfig, parse_train_config
from sfumato.training.data import SMALL_FOLDER, Data, PromptForm, cut
from sfumato.training.losses import IGNORED, Batch
from tests.unit.training_runs import EXAMPLES, recipe


@pytest.fixture(scope="module")
def form() -> PromptForm:
    return PromptForm(SMALL_FOLDER)


def data(folder: Path, *families: dict[str, Any], **changes: Any) -> Data:
    tables = recipe(folder, **changes)
    base = tables["family"][0]
    tables["family"] = [base | family for family in families] or [base]
    config = parse_train_config(tables)
    return Data(config, config.model.build(), folder)


def tensors(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(tensors(one).values(), tensors(other).values(), strict=True)
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.mark.parametrize("text", ["Hi", " 12.5\n3 ", "say <eos> and <turn|>", "naïve ☃"])
def test_the_form_equals_the_template(form: PromptForm, text: str) -> None:
    template = ChatTemplate.from_folder(SMALL_FOLDER, form.tokenizer)
    try:
        assert form.prompt(text) == Chat(form.tokenizer, template).render([Message("user", text)])
    finally:
        template.close()


def test_answers_end_their_turn(form: PromptForm) -> None:
    assert form.answer("12") == [*form.tokenizer.encode_text("12"), form.turn_end]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 999))
def test_cut_takes_one_canvas_and_keeps_what_came_before(size: int, length: int, seed: int) -> None:
    prompt, answer = [900, 901], list(range(size))
    piece = cut(prompt, answer, length, random.Random(seed))
    start = len(piece.prefix) - 2
    assert start % length == 0
    assert list(piece.prefix) == prompt + answer[:start]
    assert list(piece.tokens) == answer[start : start + length]
    assert piece.tokens


def test_cut_takes_every_canvas_equally_often() -> None:
    rng = random.Random(0)
    starts = [len(cut([], range(30), 12, rng).prefix) for _ in range(3000)]
    assert {start: abs(starts.count(start) - 1000) < 100 for start in (0, 12, 24)} == dict.fromkeys(
        (0, 12, 24), True
    )


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one, other = data(tmp_path), data(tmp_path)
    other.batch(7, 0)
    assert same(one.batch(3, 0), other.batch(3, 0))
    # Of few examples two batches may be equal by chance, which the folder's name decides: not ten.
    another = data(tmp_path, seed=2)
    assert not all(same(one.batch(step, 0), one.batch(step + 1, 0)) for step in range(10))
    assert not all(same(one.batch(step, 0), another.batch(step, 0)) for step in range(10))


def test_batch_tensors_are_what_they_say(tmp_path: Path) -> None:
    made = data(tmp_path, compile=True)
    batch = made.batch(0, 0)
    answers = {tuple(made.form.answer(text)) for _, text in EXAMPLES}
    prompts = {tuple(made.form.prompt(text)) for text, _ in EXAMPLES}
    assert batch.encode_ids.shape == (4, 40)
    assert batch.targets.shape == (4, 12)
    assert batch.places is not None
    assert batch.labels is not None
    for row in range(4):
        start, length = int(batch.starts[row]), int(batch.encode_real[row].sum())
        stream = batch.encode_ids[row].tolist()
        assert tuple(stream[:start]) in prompts
        assert tuple(stream[start:length]) in answers
        assert not batch.encode_real[row, length:].any()
        clean = batch.targets[row].tolist()
        assert clean[: length - start] == stream[start:length]
        assert set(clean[length - start :]) == {made.eos}
        labelled = batch.labels[row] != IGNORED
        places = batch.places[row][labelled]
        assert places.tolist() == list(range(length - 1))
        assert batch.labels[row][labelled].tolist() == stream[1:length]


def test_loss_on_the_answer_alone(tmp_path: Path) -> None:
    batch = data(tmp_path, {"encoder_on": "answer"}).batch(0, 0)
    assert batch.places is not None
    assert batch.labels is not None
    for row in range(4):
        labelled = batch.labels[row] != IGNORED
        assert int(batch.places[row][labelled][0]) == int(batch.starts[row]) - 1
        count = int(batch.encode_real[row].sum() - batch.starts[row])
        assert batch.labels[row][labelled].tolist() == batch.targets[row, :count].tolist()


def test_without_the_encoders_loss_there_is_no_answer_to_see(tmp_path: Path) -> None:
    made = data(tmp_path, {"encoder_probability": 0.0}, {"encoder_probability": 0.5}, compile=True)
    batch = made.batch(0, 0)
    assert batch.places is None
    assert batch.encode_ids.shape == (4, 24)
    assert torch.equal(batch.encode_real.sum(1), batch.starts)
    carried = sum(made.batch(step, 1).places is not None for step in range(200))
    assert 70 < carried < 130


def test_long_answers_fill_several_canvases(tmp_path: Path) -> None:
    text = "1234567890" * 3
    rows = f'{{"task": "t", "prompt": "p", "answer": "{text}"}}\n' * 4
    path = tmp_path / "long.jsonl"
    path.write_text(rows)
    made = data(tmp_path, {"source": str(path), "prompt_width": 48, "stream_width": 60})
    prompt, answer = made.form.prompt("p"), made.form.answer(text)
    seen = set()
    for step in range(6):
        batch = made.batch(step, 0)
        for row in range(4):
            before = int(batch.starts[row]) - len(prompt)
            seen.add(before)
            assert batch.encode_ids[row, : batch.starts[row]].tolist() == prompt + answer[:before]
            wanted = answer[before : before + 12]
            assert batch.targets[row].tolist() == wanted + [made.eos] * (12 - len(wanted))
    assert seen == {0, 12, 24}


def test_epochs_show_every_example_once(tmp_path: Path) -> None:
    made = data(tmp_path, {"rows": 5})
    first = made.batch(0, 0).encode_ids
    again = made.batch(1, 0).encode_ids
    assert not torch.equal(first, again)
    assert {tuple(row) for row in first.tolist()} == {tuple(row) for row in again.tolist()}


def test_examples_that_do_not_fit_are_named_or_passed_over(tmp_path: Path) -> None:
    narrow = {"prompt_width": 12, "stream_width": 18}
    with pytest.raises(TrainingError, match="does not fit its widths"):
        data(tmp_path, narrow | {"rows": 5}).batch(0, 0)  # all five examples
    batch = data(tmp_path, narrow | {"fitting_only": True, "rows": 2}).batch(0, 0)
    assert batch.starts.max() <= 12
    with pytest.raises(TrainingError, match="only 0 fit"):
        data(tmp_path, {"prompt_width": 3, "fitting_only": True}).batch(0, 0)


def test_a_family_of_leftovers_takes_what_the_earlier_ones_would_not(tmp_path: Path) -> None:
    narrow = {"prompt_width": 12, "stream_width": 18, "fitting_only": True, "rows": 2}
    made = data(
        tmp_path, narrow, {"fitting_only": True, "leftover": True, "rows": 1, "candidates": 9}
    )
    for step in range(4):
        assert int(made.batch(step, 0).starts.max()) <= 12
        assert int(made.batch(step, 1).starts.min()) > 12


def test_families_of_one_source_draw_different_examples(tmp_path: Path) -> None:
    wide = {"source": "text", "prompt_width": 120, "stream_width": 200, "canvas_width": 84}
    model = recipe(tmp_path)["model"] | {"canvas_length": 84}
    made = data(tmp_path, wide, wide, model=model)
    assert not same(made.batch(0, 0), made.batch(0, 1))


def test_sudoku_batches_follow_the_curriculum(tmp_path: Path) -> None:
    sudoku = {
        "source": "sudoku", "prompt_width": 106, "stream_width": 188, "canvas_width": 84,
        "encoder_on": "answer",
    }  # fmt: skip
    model = recipe(tmp_path)["model"] | {"canvas_length": 84}
    made = data(tmp_path, sudoku, model=model, data={"sudoku_grids": 2}, max_steps=100)
    hole = made.form.tokenizer.encode_text(".")[0]

    def holes(step: int) -> float:
        return float((made.batch(step, 0).encode_ids == hole).sum(1).float().mean())

    early, late = sum(map(holes, range(4))) / 4, sum(map(holes, range(90, 94))) / 4
    assert early < 22
    assert late > 26
    assert (tmp_path / "sudoku.npy").exists()


def test_a_vocabulary_too_small_for_the_tokenizer(tmp_path: Path) -> None:
    model = recipe(tmp_path)["model"] | {"vocab_size": 100}
    with pytest.raises(TrainingError, match="the tokenizer has 2048 ids"):
        data(tmp_path, model=model)


def test_unknown_text_tasks_are_named(tmp_path: Path) -> None:
    made = data(tmp_path, {"source": "text"}, data={"text_weights": {"poems": 1.0}})
    with pytest.raises(InputError, match="'poems'"):
        made.batch(0, 0)


def test_collate_pads_to_the_family_widths(tmp_path: Path) -> None:
    made = data(tmp_path)
    family = FamilyConfig(
        source="text", rows=1, prompt_width=8, stream_width=16, canvas_width=5, canvases=1
    )
    piece = cut([2, 3, 4], [30, 31, 5], 12, random.Random(0))
    made.config = dataclasses.replace(made.config, compile=True)
    batch = made.collate([piece], family, with_encoder=False)
    assert batch.encode_ids.tolist() == [[2, 3, 4, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[30, 31, 5, 1, 1]]
    made.config = dataclasses.replace(made.config, compile=False)
    batch = made.collate([piece], family, with_encoder=False)
    assert batch.encode_ids.tolist() == [[2, 3, 4]], "uncompiled, nothing is padded further"
    assert batch.prompt_width == 3
    assert batch.targets.tolist() == [[30, 31, 5, 1, 1]]
