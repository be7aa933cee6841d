"""Outputs taken apart: thoughts, answers, tool calls, whole and as they arrive."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InputError
from sfumato.text.thoughts import OutputStream, Parsed, Piece, parse, strip_thoughts
from sfumato.text.tokenizer import Tokenizer
from tests.unit import text_samples as samples

TOKENIZER = Tokenizer(samples.byte_level(), samples.NAMED, "t.json")


def ids_of(text: str) -> list[int]:
    """Ids of `text` with its control tokens as such: what a model would put out."""
    spellings = TOKENIZER.spellings
    return TOKENIZER.encode_prompt(spellings.split(spellings.mark(text, "\ufdd0"), "\ufdd0"))


def parsed(text: str, *, stop_ids: tuple[int, ...] = (), in_channel: bool = False) -> Parsed:
    return parse(ids_of(text), TOKENIZER, stop_ids=stop_ids, in_channel=in_channel)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", Parsed()),
        ("4<turn|><eos><eos>", Parsed(answer="4")),
        ("4<turn|>5", Parsed(answer="4")),
        ("4<eos>5", Parsed(answer="4")),
        ("4<|tool_response>5", Parsed(answer="4")),
        ("<|channel>thought\nhm\n<channel|>4", Parsed(thought="hm", answer="4")),
        ("<|channel>thought\na\n\nb\n\n<channel|>4", Parsed(thought="a\n\nb", answer="4")),
        ("<|channel>thought\n<channel|>4", Parsed(answer="4")),
        ("<|channel>thought<channel|>4", Parsed(answer="4")),
        ("<|channel><channel|>4", Parsed(answer="4")),
        ("<|channel>though<channel|>4", Parsed(thought="though", answer="4")),
        ("<|channel>other\nx<channel|>4", Parsed(thought="other\nx", answer="4")),
        ("a<|channel>thought\nx<channel|>b", Parsed(thought="x", answer="ab")),
        ("<|channel>thought\nx", Parsed(thought="x", unfinished="thought")),
        ("<|channel>thought\nx\n", Parsed(thought="x", unfinished="thought")),
        ("<|channel>thou", Parsed(thought="thou", unfinished="thought")),
        ("<|channel>thought", Parsed(unfinished="thought")),
        ("<|channel>", Parsed(unfinished="thought")),
        ("<|channel>thought\nx<turn|>y", Parsed(thought="x", unfinished="thought")),
        ("<|channel>thought\na<|channel>b<channel|>c", Parsed(thought="ab", answer="c")),
        ("a<channel|>b", Parsed(answer="ab")),
        ("a<|turn><pad>b", Parsed(answer="ab")),
        ("a<tool_call|>b", Parsed(answer="ab")),
        (
            '<|tool_call>call:f{x:<|"|>1<|"|>}<tool_call|><|tool_response>',
            Parsed(tool_calls=('call:f{x:<|"|>1<|"|>}',)),
        ),
        (
            "ok<|tool_call>a<tool_call|><|tool_call>b<tool_call|>",
            Parsed(answer="ok", tool_calls=("a", "b")),
        ),
        (
            "<|channel>thought\nx\n<|tool_call>a<tool_call|>y",
            Parsed(thought="x", answer="y", tool_calls=("a",)),
        ),
        ("<|tool_call>call:f{", Parsed(unfinished="tool_call", fragment="call:f{")),
        ("<|tool_call><|channel>x<turn|>", Parsed(unfinished="tool_call", fragment="<|channel>x")),
    ],
)
def test_parse(output: str, expected: Parsed) -> None:
    assert parsed(output) == expected


def test_a_thought_that_the_prompt_opened() -> None:
    assert parsed("thought\nx<channel|>y", in_channel=True) == Parsed(thought="x", answer="y")
    assert parsed("x<channel|>y", in_channel=True) == Parsed(thought="x", answer="y")


def test_other_stop_ids() -> None:
    (stop,) = TOKENIZER.encode_text(";")
    assert parsed("a;b", stop_ids=(stop,)) == Parsed(answer="a")


def test_spelled_out_tokens_are_text() -> None:
    ids = TOKENIZER.encode_text("<|channel>thought\nx<channel|>y<turn|>z")
    assert parse(ids, TOKENIZER) == Parsed(answer="<|channel>thought\nx<channel|>y<turn|>z")


def test_an_id_without_an_entry_does_not_fail_the_answer() -> None:
    ids = [*ids_of("a"), 999_999, *ids_of("b")]
    assert parse(ids, TOKENIZER) == Parsed(answer="a\ufffdb")
    with pytest.raises(InputError, match="999999"):
        TOKENIZER.decode(ids)


def test_pieces_as_they_arrive() -> None:
    stream = OutputStream(TOKENIZER)
    assert stream.push(ids_of("<|channel>tho")) == []
    assert stream.push(ids_of("ught\nhm")) == [Piece("thought", "hm")]
    assert stream.push(ids_of("\n")) == []
    assert stream.push(ids_of("\nso\n")) == [Piece("thought", "\n\nso")]
    assert stream.push(ids_of("<channel|>4")) == [Piece("answer", "4")]
    assert stream.push(ids_of("<|tool_call>f<tool_call|><|tool_call>")) == [Piece("tool_call", "f")]
    assert stream.push(ids_of("<turn|>x")) == []
    assert stream.ended
    assert stream.push(ids_of("x")) == []
    assert stream.flush() == []
    assert not OutputStream(TOKENIZER).ended


def _outputs() -> st.SearchStrategy[list[int]]:
    words = ["thought\n", "thought", "hm", "\n", " é🙂", "<|channel>", "4"]
    pieces = st.sampled_from(samples.CONTROLS + words).map(ids_of)
    plain = st.sampled_from(["<|channel>", "é"]).map(TOKENIZER.encode_text)
    part = st.integers(0, TOKENIZER.vocab_size - 1).map(lambda token: [token])
    return st.lists(pieces | plain | part, max_size=20).map(
        lambda parts: [token for ids in parts for token in ids]
    )


@given(_outputs(), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_a_stream_is_the_whole(ids: list[int], cuts: list[int], in_channel: bool) -> None:
    stream = OutputStream(TOKENIZER, in_channel=in_channel)
    pieces, start = [], 0
    for cut in [*sorted(cuts), len(ids)]:
        pieces += stream.push(ids[start:cut])
        start = max(start, cut)
    pieces += stream.flush()
    assert stream.result(pieces) == parse(ids, TOKENIZER, in_channel=in_channel)
    assert all(piece.text for piece in pieces if piece.kind != "tool_call")


@given(_outputs())
def test_nothing_is_said_twice_or_lost(ids: list[int]) -> None:
    found = parse(ids, TOKENIZER)
    stops = {TOKENIZER.control[name] for name in ("<turn|>", "<eos>", "<|tool_response>")}
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = TOKENIZER.decode(ids[:end])
    said = found.thought + found.answer + "".join(found.tool_calls) + found.fragment
    assert len(found.answer) <= len(text)
    if not TOKENIZER.control_ids & set(ids[:end]):
        assert found.answer == text == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("<|channel>thought\nx\n<channel|>y", "y"),
        ("a<|channel>x<|channel>y<channel|>b<channel|>c", "abc"),
        ("a<|channel>cut", "a"),
        ("a<|chan", "a<|chan"),
        ("", ""),
    ],
)
def test_strip_thoughts(text: str, expected: str) -> None:
    assert strip_thoughts(text) == expected


@given(st.lists(st.sampled_from(["<|channel>", "<channel|>", "a", "\n", "<", "thought"])))
def test_strip_thoughts_reads_as_the_released_template(parts: list[str]) -> None:
    text = "".join(parts)
    closed = [part.split("<|channel>")[0] for part in text.split("<channel|>")]
    assert strip_thoughts(text) == "".join(closed)
    assert not re.search(r"<\|channel>|<channel\|>", strip_thoughts(text)) or "<" in parts
