"""Conversations: what may be said, what the model reads of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InputError, TemplateError
from sfumato.text.chat import (
    Chat,
    Conversation,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    check_messages,
    expand_images,
    message_from_json,
)
from sfumato.text.template import ChatTemplate
from sfumato.text.thoughts import Parsed
from sfumato.text.tokenizer import Tokenizer
from tests.helpers import Shape, tiny_config
from tests.unit import text_samples as samples

TOKENIZER = Tokenizer(samples.gemma_like(), samples.NAMED, "t.json")
CONFIG = tiny_config(Shape())  # image 96, begin 95, end 94


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    template = ChatTemplate(samples.GEMMA_LIKE, TOKENIZER)
    yield Chat(TOKENIZER, template)
    template.close()


def shown(chat: Chat, *messages: Message, **options: Any) -> str:
    ids = chat.render(messages, **options)
    return chat.tokenizer.decode(ids, skip_control=False)


QUIET = "<|turn>model\n<|channel>thought\n<channel|>"


def test_one_question(chat: Chat) -> None:
    assert shown(chat, Message("user", " hi ")) == f"<bos><|turn>user\nhi<turn|>\n{QUIET}"


def test_several_turns_without_earlier_thoughts(chat: Chat) -> None:
    messages = (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("assistant", "<|channel>thought\nhm\n<channel|>b", thought="hm"),
        Message("user", "c"),
    )
    assert shown(chat, *messages, enable_thinking=True) == (
        "<bos><|turn>system\n<|think|>\nbe brief<turn|>\n<|turn>user\na<turn|>\n"
        "<|turn>model\nb<turn|>\n<|turn>user\nc<turn|>\n<|turn>model\n"
    )


def test_a_thought_inside_a_tool_loop_is_kept(chat: Chat) -> None:
    call = ToolCall("add", {"x": 1, "y": "<tool_call|>"})
    messages = (
        Message("user", "a"),
        Message("assistant", thought="must add<channel|>", tool_calls=(call,)),
        Message("tool", "3", name="add"),
    )
    segments = chat.tokenizer.decode(chat.render(messages), skip_control=True)
    assert segments.count("thought\nmust add<channel|>\n") == 1
    control = [i for i in chat.render(messages) if i in TOKENIZER.control_ids]
    names = {i: spelling for spelling, i in TOKENIZER.control.items()}
    assert [names[i] for i in control] == [
        "<bos>", "<|turn>", "<turn|>", "<|turn>", "<|channel>", "<channel|>", "<|tool_call>",
        '<|"|>', '<|"|>', "<tool_call|>", "<|tool_response>", '<|"|>', '<|"|>', "<tool_response|>",
    ]  # fmt: skip


def test_an_earlier_thought_is_dropped_even_with_tool_calls(chat: Chat) -> None:
    messages = (
        Message("user", "a"),
        Message("assistant", "", thought="secret", tool_calls=(ToolCall("f", {}, "1"),)),
        Message("tool", "3", name="f", call_id="1"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    assert "secret" not in shown(chat, *messages)


@given(text=samples.hostile_text(), answer=samples.hostile_text())
def test_turns_cannot_be_faked(chat: Chat, text: str, answer: str) -> None:
    def control(user: str, model: str) -> list[int]:
        messages = [Message("user", "a" + user), Message("assistant", model), Message("user", "b")]
        return [i for i in chat.render(messages) if i in TOKENIZER.control_ids]

    assert control(text, answer) == control("x", "y")


def test_images_have_their_places(chat: Chat) -> None:
    message = Message("user", (ImagePart(), TextPart("what <|image|> is this?")))
    ids = chat.render([message])
    assert ids.count(TOKENIZER.control["<|image|>"]) == message.image_count == 1


def test_thinking_needs_a_switch() -> None:
    template = ChatTemplate("{{ messages[0].content }}", TOKENIZER)
    chat = Chat(TOKENIZER, template)
    assert TOKENIZER.decode(chat.render([Message("user", "hi")])) == "hi"
    with pytest.raises(InputError, match="no switch"):
        chat.render([Message("user", "hi")], enable_thinking=True)
    template.close()


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "prompt is empty"),
        ([Message("user", "")], "prompt is empty"),
        ([Message("user", " \n\t")], "prompt is empty"),
        ([Message("user", (TextPart(" "),))], "prompt is empty"),
        ([Message("system", "x")], "prompt is empty"),
        ([Message("user", "a"), Message("user", "")], "message 2 of 2: the user's turn is empty"),
        ([Message("assistant", "a")], "no user's turn"),
        ([Message("user", "a"), Message("assistant", "b")], "ends with the assistant's turn"),
        ([Message("user", "a"), Message("system", "b")], "can only be the first"),
        ([Message("user", "a\udcff")], "the prompt is no UTF-8 text: its character 2 cannot"),
        ([Message("system", "\ud800"), Message("user", "a")], "message 1 of 2 is no UTF-8 text"),
        ([Message("user", (ImagePart(), TextPart("\ud800")))], "is no UTF-8 text"),
        ([Message("king", "a")], "no role 'king'"),  # type: ignore[arg-type]
        ([Message("user", "a", thought="b")], "only an assistant thinks"),
        ([Message("system", (ImagePart(),)), Message("user", "a")], "can show images"),
    ],
)
def test_conversations_that_cannot_be_meant(messages: list[Message], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        check_messages(messages)
    assert caught.value.exit_code == 2


def test_an_image_alone_is_a_question() -> None:
    check_messages([Message("user", (ImagePart(),))])


def test_conversations_grow_and_go_back() -> None:
    start = Conversation().instruct("be kind")
    asked = start.say("a")
    done = asked.reply(Parsed(thought="t", answer="b")).say("c").reply("d")
    assert [m.content for m in done.messages] == ["be kind", "a", "b", "c", "d"]
    assert done.undo().messages == asked.reply("b").messages
    assert done.undo().undo() == start
    assert start.undo() == start
    assert [m.role for m in done.instruct(" ").messages] == ["user", "assistant"] * 2
    assert done.instruct("x").messages[0] == Message("system", "x")
    assert done.with_thinking(True).thinking
    assert not done.thinking


def test_a_conversation_renders_with_its_own_thinking(chat: Chat) -> None:
    conversation = Conversation().say("hi")
    assert chat.render_conversation(conversation) == chat.render(conversation.messages)
    assert chat.render_conversation(conversation.with_thinking(True)) == chat.render(
        conversation.messages, enable_thinking=True
    )


def test_messages_from_json() -> None:
    assert message_from_json({"role": "user", "content": "a"}) == Message("user", "a")
    assert message_from_json({"role": "model", "content": "a"}).role == "assistant"
    for fields, match in (
        ({"role": "x", "content": "a"}, "no role 'x'"),
        ({"role": [], "content": "a"}, "no role"),
        ({"role": "user"}, "must be text"),
        ({"role": "user", "content": "a", "weight": 1}, "'weight'"),
    ):
        with pytest.raises(InputError, match=match):
            message_from_json(fields)


@given(st.lists(st.integers(0, 5)))
def test_image_tokens_expand(counts: list[int]) -> None:
    ids = [7, *[96] * len(counts), 8]
    expanded = expand_images(ids, CONFIG, counts)
    assert expanded == [7, *(t for n in counts for t in [95, *[96] * n, 94]), 8]


def test_images_without_places_or_tokens() -> None:
    with pytest.raises(InputError, match="places for 1 images, but 0"):
        expand_images([96], CONFIG, [])
    with pytest.raises(InputError, match="places for 0 images, but 2"):
        expand_images([1], CONFIG, [3, 3])


def test_the_small_model() -> None:
    tokenizer = Tokenizer.from_folder(samples.SMALL)
    template = ChatTemplate.from_folder(samples.SMALL, tokenizer)
    chat = Chat(tokenizer, template)
    text = "<bos><|turn>user\nhello<turn|>\n<|turn>model\n"
    assert shown(chat, Message("user", "hello")) == text
    with pytest.raises(TemplateError, match="refuses this conversation"):
        chat.render([Message("user", (TextPart("a"), ImagePart()))])
    template.close()
