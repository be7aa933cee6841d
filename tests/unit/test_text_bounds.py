"""Too long a prompt is refused before it is tokenised, and one that fits never is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sfumato.errors import ContextLengthError
from sfumato.text.chat import Chat, Message
from sfumato.text.spellings import Control
from sfumato.text.template import ChatTemplate
from sfumato.text.tokenizer import Tokenizer
from tests.unit import text_samples as samples

GEMMA = Tokenizer(samples.gemma_like(), samples.NAMED, "t.json")
BYTES = Tokenizer(samples.byte_level(), samples.NAMED, "t.json")
SMALL = Tokenizer.from_folder(samples.SMALL)
KNOWN = {"gemma": GEMMA, "bytes": BYTES, "small": SMALL}
LONGEST = len("<tool_response|>")


@pytest.mark.parametrize("name", KNOWN)
@given(text=samples.hostile_text() | st.text(st.sampled_from("▁ \nthe<|>é7"), max_size=60))
def test_no_text_takes_fewer_tokens_than_the_least(name: str, text: str) -> None:
    tokenizer = KNOWN[name]
    ids = tokenizer.encode_text(text)
    assert tokenizer.least_tokens([text]) <= len(ids)
    assert tokenizer.least_tokens([text, Control("<bos>"), text]) <= 2 * len(ids) + 1


@pytest.mark.parametrize("name", KNOWN)
def test_the_longest_token_is_the_bound(name: str) -> None:
    tokenizer = KNOWN[name]
    assert tokenizer.least_tokens(["x" * 100 * LONGEST]) == 100
    assert tokenizer.least_tokens(["x" * (100 * LONGEST + 1)]) == 101
    assert tokenizer.least_tokens([Control("<bos>"), "", "x"]) == 2


def test_a_mark_for_a_blank_has_three_bytes() -> None:
    backend = samples.gemma_like()
    backend.add_tokens([AddedToken("▁" * 31, normalized=False)])
    tokenizer = Tokenizer(backend, samples.NAMED, "t.json")
    assert len(tokenizer.encode_text("▁" * 310)) == 10
    assert tokenizer.least_tokens(["▁" * 310]) == 10


def changed(change: Callable[[dict[str, Any]], object], backend: Backend) -> Backend:
    state = json.loads(backend.to_str())
    change(state)
    return Backend.from_str(json.dumps(state))


def stripping() -> Backend:
    backend = samples.byte_level()
    backend.normalizer = normalizers.Strip()
    return backend


def dropping() -> Backend:
    backend = samples.byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("-", "removed"), backend.pre_tokenizer]
    )
    return backend


def swallowing() -> Backend:
    backend = samples.byte_level()
    backend.add_tokens([AddedToken("word", rstrip=True)])
    return backend


def without_fallback(state: dict[str, Any]) -> None:
    state["model"] |= {"byte_fallback": False, "fuse_unk": True}


SHORTENING: dict[str, tuple[Backend, str]] = {
    "folds": (samples.folding(), "\u00ad"),
    "strips": (stripping(), " "),
    "drops": (dropping(), "-"),
    "swallows": (swallowing(), "word" + " " * 999),
    "unknown": (changed(lambda s: s["model"]["vocab"].pop("Ĭ"), samples.byte_level()), "\n"),
    "fallback": (changed(without_fallback, samples.gemma_like()), "水"),
    "unigram": (samples.unigram(), "x"),
}


@pytest.mark.parametrize("name", SHORTENING)
def test_tokenizers_that_may_shorten_a_text_say_nothing(name: str) -> None:
    backend, text = SHORTENING[name]
    assert Tokenizer(backend, samples.NAMED, "t.json").least_tokens([text * 10_000]) == 0


TRIMMING = "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenising anything is an error."""

    def refuse(*_: object) -> None:
        pytest.fail("the text was tokenised")

    monkeypatch.setattr(Tokenizer, "encode_text", refuse)


@pytest.mark.usefixtures("unread")
def test_what_is_too_long_is_not_tokenised() -> None:
    chat = Chat(SMALL, ChatTemplate(TRIMMING, SMALL), 64)
    with pytest.raises(ContextLengthError, match="maximum context length is 64 tokens") as caught:
        chat.render([Message("user", "x" * 1_000_000)])
    assert "62,501 tokens or more" in str(caught.value)
    chat.template.close()


def test_what_the_template_leaves_out_does_not_count() -> None:
    chat = Chat(SMALL, ChatTemplate(TRIMMING, SMALL), 64)
    assert len(chat.render([Message("user", "hi" + " " * 1_000_000)])) < 64
    assert len(Chat(SMALL, chat.template).render([Message("user", "1" * 100)])) == 101
    chat.template.close()
