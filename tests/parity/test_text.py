"""Prompts as `transformers` makes them: for text without control tokens in it, id for id.

The last test needs the real vocabulary of 262,144 entries, which is under Gemma's own terms and so
not in this repository: GEMMA_TOKENIZER_FOLDER names a folder with Gemma 3's tokenizer.json, and the
test renames the entries that Gemma 4 renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sfumato.text.chat import Chat, ImagePart, Message, TextPart, ToolCall
from sfumato.text.template import ChatTemplate
from sfumato.text.tokenizer import Tokenizer
from tests.unit import text_samples as samples

REAL = os.environ.get("GEMMA_TOKENIZER_FOLDER", "")


@dataclass(frozen=True)
class Both:
    """One checkpoint folder, read by us and by the reference."""

    chat: Chat
    reference: Any

    def check(self, messages: list[Message], fields: list[dict[str, Any]], **options: Any) -> None:
        expected = self.reference.apply_chat_template(
            fields, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
        assert self.chat.render(messages, **options) == expected


def _both(folder: Path) -> Both:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    return Both(Chat(tokenizer, template), PreTrainedTokenizerFast.from_pretrained(folder))


@pytest.fixture(scope="module", params=["small", "gemma_like", "byte_level"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    folder = samples.SMALL
    if request.param != "small":
        backend = {"gemma_like": samples.gemma_like, "byte_level": samples.byte_level}
        made = backend[request.param]()
        folder = samples.write_folder(tmp_path_factory.mktemp(request.param), made)
    found = _both(folder)
    yield found
    found.chat.template.close()


def benign() -> st.SearchStrategy[str]:
    """Text with angle brackets, bars, white space and anything else, but no control token."""
    words = [
        "a < b",
        "x |> f",
        "<b>",
        "\n\n",
        "  ",
        "▁",
        "the user",
        "12.5",
        "é🙂水",
        '"',
        "\t",
        "<",
    ]
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    text = st.lists(st.sampled_from(words) | anything, min_size=1, max_size=8).map("".join)
    known = [*samples.CONTROLS, *Tokenizer.from_folder(samples.SMALL).control]
    return text.filter(lambda t: bool(t.strip()) and not any(name in t for name in known))


@given(st.lists(benign(), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_conversations(both: Both, texts: list[str], system: bool, thinking: bool) -> None:
    roles = ["system"] if system else []
    while len(roles) < len(texts):
        roles.append("assistant" if roles and roles[-1] == "user" else "user")
    assume(roles[-1] == "user")
    fields = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    messages = [Message(f["role"], f["content"]) for f in fields]  # type: ignore[arg-type]
    both.check(messages, fields, enable_thinking=thinking)


@given(benign(), benign())
def test_earlier_thoughts_spelled_out(both: Both, thought: str, answer: str) -> None:
    content = f"<|channel>thought\n{thought}\n<channel|>{answer}"
    fields = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "b"},
    ]
    both.check([Message(f["role"], f["content"]) for f in fields], fields)  # type: ignore[arg-type]


@given(benign(), benign())
def test_tools_thoughts_and_images(
    tmp_path_factory: pytest.TempPathFactory, a: str, b: str
) -> None:
    both = _gemma_like(tmp_path_factory)
    arguments = {"x" + a: b, "n": 3, "deep": [True, {"y": a}]}
    call = {"type": "function", "id": "", "function": {"name": "f", "arguments": arguments}}
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": b}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    fields: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": a}]},
        {"role": "assistant", "content": "", "reasoning": b, "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": b},
    ]
    messages = [
        Message("user", (ImagePart(), TextPart(a))),
        Message("assistant", thought=b, tool_calls=(ToolCall("f", arguments),)),
        Message("tool", b, name="f"),
    ]
    both.check(messages, fields, tools=tools)


_MADE: dict[str, Both] = {}


def _gemma_like(factory: pytest.TempPathFactory) -> Both:
    if not _MADE:
        _MADE["both"] = _both(samples.write_folder(factory.mktemp("tools")))
    return _MADE["both"]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_alone(both: Both, text: str) -> None:
    names = [*both.chat.tokenizer.control]
    assume(not any(name in text for name in names))
    ids = both.chat.tokenizer.encode_text(text)
    assert ids == both.reference.encode(text, add_special_tokens=False)
    assert both.chat.tokenizer.decode(ids) == both.reference.decode(ids, skip_special_tokens=True)


@pytest.mark.released
@pytest.mark.skipif(not REAL, reason="GEMMA_TOKENIZER_FOLDER names no folder with tokenizer.json")
def test_the_real_vocabulary(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    names = {105: "<|turn>", 106: "<turn|>", 100: "<|channel>", 101: "<channel|>", 98: "<|think|>",
             46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
             50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 255_999: "<|image>",
             258_880: "<|image|>", 258_882: "<image|>"}  # fmt: skip
    data = json.loads((Path(REAL) / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["id"] < 262_144]
    vocabulary = data["model"]["vocab"]
    by_id = {token: spelling for spelling, token in vocabulary.items()}
    for token, spelling in names.items():
        vocabulary.pop(by_id[token])
        vocabulary[spelling] = token
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["id"] not in names]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] += [
        {"id": token, "content": spelling, "special": True, **flags}
        for token, spelling in sorted(names.items())
    ]
    folder = samples.write_folder(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    both = _both(folder)
    assert both.chat.tokenizer.vocab_size == 262_144
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    prose = (
        "Once upon a time,  there was\n\n\n a table <b>with</b> 3 legs; é 水 🙂 ▁ ▁▁\ta < b |> c"
    )
    for text in (prose, prose * 200, "x" * 5000, "\n" * 40 + "z" + " " * 40 + "z"):
        ids = both.chat.tokenizer.encode_text(text)
        assert ids == reference.encode(text, add_special_tokens=False)
        assert both.chat.tokenizer.decode(ids) == text.replace("▁", " ")
        both.check([Message("user", text)], [{"role": "user", "content": text}])
    hostile = "".join(both.chat.tokenizer.control)
    assert both.chat.tokenizer.control_ids.isdisjoint(both.chat.tokenizer.encode_text(hostile))
    both.chat.template.close()
