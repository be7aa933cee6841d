"""Conversations: who said what, and the token ids the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from sfumato.config.model import ModelConfig
from sfumato.errors import ContextLengthError, InputError
from sfumato.text.spellings import Segment
from sfumato.text.template import ChatTemplate
from sfumato.text.thoughts import Parsed, strip_thoughts
from sfumato.text.tokenizer import Tokenizer

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES = ("system", "developer", "user", "assistant", "tool")
_INSTRUCTING = ("system", "developer")


@dataclass(frozen=True)
class TextPart:
    """Text inside a message of several parts."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """The place of one image. Its pixels travel beside the conversation, in the same order."""


@dataclass(frozen=True)
class ToolCall:
    """A call the model made: the tool's name and its arguments, JSON or as the model wrote them."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn. `thought` is an assistant's own; `name` and `call_id` say what a tool answers."""

    role: Role
    content: str | tuple[TextPart | ImagePart, ...] = ""
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing but white space in it."""
        if isinstance(self.content, str):
            return not self.content.strip()
        return all(isinstance(part, TextPart) and not part.text.strip() for part in self.content)

    @property
    def image_count(self) -> int:
        """The number of images this turn shows."""
        return sum(isinstance(part, ImagePart) for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """Messages so far and whether the model may think. Every change is a new conversation."""

    messages: tuple[Message, ...] = ()
    thinking: bool = False

    def say(self, content: str | tuple[TextPart | ImagePart, ...]) -> Conversation:
        """With the user's next turn."""
        return self._with(Message("user", content))

    def reply(self, output: Parsed | str) -> Conversation:
        """With the model's turn: of a parsed output, only the answer is kept."""
        answer = output if isinstance(output, str) else output.answer
        return self._with(Message("assistant", answer))

    def instruct(self, text: str) -> Conversation:
        """With `text` as the system's instructions, in place of any before; empty for none."""
        rest = tuple(m for m in self.messages if m.role not in _INSTRUCTING)
        head = (Message("system", text),) if text.strip() else ()
        return replace(self, messages=head + rest)

    def undo(self) -> Conversation:
        """Without the user's last turn and all that followed it; the same if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                return replace(self, messages=self.messages[:index])
        return self

    def with_thinking(self, thinking: bool) -> Conversation:
        """With thinking switched on or off from here on."""
        return replace(self, thinking=thinking)

    def _with(self, message: Message) -> Conversation:
        return replace(self, messages=(*self.messages, message))


@dataclass(frozen=True)
class Chat:
    """A tokenizer and a template of one checkpoint: conversations become prompts.

    `context` is the model's greatest length in tokens, if prompts are to be held against it.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    context: int | None = None

    def render(
        self,
        messages: Sequence[Message],
        *,
        enable_thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of the prompt, up to where the model's turn begins.

        Thoughts of turns before the user's last are left out. An image is one image token here;
        see `expand_images`. Raises InputError for a conversation that cannot be meant,
        ContextLengthError for one that must be longer than `context`, and TemplateError if the
        template fails.
        """
        check_messages(messages)
        if enable_thinking and not self.template.supports_thinking:
            raise InputError(
                "thinking is on, but this checkpoint's chat template has no switch for it",
                hint="leave thinking off with this model",
            )
        last_user = max(i for i, m in enumerate(messages) if m.role == "user")
        rendered = [_fields(m, earlier=i < last_user) for i, m in enumerate(messages)]
        segments = self.template.render(rendered, tools=tools, enable_thinking=enable_thinking)
        self._check_length(segments)
        return self.tokenizer.encode_prompt(segments)

    def _check_length(self, segments: Sequence[Segment]) -> None:
        """Refuse what can only be too long, before a minute goes into counting its tokens.

        The rendered prompt is looked at, not the messages: a template may leave text out.
        """
        characters = sum(len(one) for one in segments if isinstance(one, str))
        if self.context is None or 4 * characters + len(segments) <= self.context:
            return  # bytes at most: the vocabulary need not be looked through
        least = self.tokenizer.least_tokens(segments)
        if least > self.context:
            raise ContextLengthError(
                f"the prompt is too long: {least:,} tokens or more, but this model's maximum "
                f"context length is {self.context} tokens",
                hint="shorten the prompt",
            )

    def render_conversation(self, conversation: Conversation) -> list[int]:
        """`render` of a conversation with its own setting of thinking."""
        return self.render(conversation.messages, enable_thinking=conversation.thinking)


def message_from_json(fields: Mapping[str, Any]) -> Message:
    """A plain text message from a `{"role": ..., "content": ...}` object.

    Raises InputError for other keys, an unknown role or a content that is no text or no UTF-8.
    """
    unknown = sorted(set(fields) - {"role", "content"})
    if unknown:
        raise InputError(f"a message has no field {unknown[0]!r}", hint="it has role and content")
    role, content = fields.get("role"), fields.get("content")
    role = "assistant" if role == "model" else role
    if role not in ROLES:
        raise InputError(f"there is no role {role!r}", hint=f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"the content of a message must be text, not {type(content).__name__}")
    check_text(content, "the content of a message")
    return Message(cast("Role", role), content)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise InputError if `messages` are not a conversation the model could answer."""
    if not messages or all(m.role in _INSTRUCTING for m in messages):
        raise InputError("the prompt is empty", hint="write what you want to ask")
    for index, message in enumerate(messages):
        where = f"message {index + 1} of {len(messages)}"
        if message.role not in ROLES:
            raise InputError(
                f"{where}: there is no role {message.role!r}", hint=f"roles are {', '.join(ROLES)}"
            )
        if message.role in _INSTRUCTING and index:
            raise InputError(f"{where}: a {message.role} message can only be the first")
        only = len(messages) == 1
        _check_text(message, "the prompt" if only else where)
        if message.role == "user" and message.is_blank:
            raise InputError(
                "the prompt is empty" if only else f"{where}: the user's turn is empty",
                hint="write what you want to ask",
            )
        if message.role != "assistant" and (message.thought or message.tool_calls):
            raise InputError(f"{where}: only an assistant thinks and calls tools")
        if message.image_count and message.role != "user":
            raise InputError(f"{where}: only a user's turn can show images")
    if not any(m.role == "user" for m in messages):
        raise InputError("the conversation has no user's turn", hint="write what you want to ask")
    if messages[-1].role not in ("user", "tool"):
        raise InputError(
            f"the conversation ends with the {messages[-1].role}'s turn: nothing to answer",
            hint="end it with a user's turn",
        )


def _check_text(message: Message, where: str) -> None:
    content = message.content
    parts = [content] if isinstance(content, str) else [
        part.text for part in content if isinstance(part, TextPart)
    ]  # fmt: skip
    for text in parts:
        check_text(text, where)


def check_text(text: str, where: str) -> None:
    """Raise InputError for what UTF-8 cannot hold, such as a name's bytes that are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise InputError(
            f"{where} is no UTF-8 text: its character {problem.start + 1:,} cannot be read",
            hint="write it in UTF-8",
        ) from None


def expand_images(ids: Sequence[int], config: ModelConfig, counts: Sequence[int]) -> list[int]:
    """Put each image's soft tokens in its place: begin, `counts[i]` image tokens, end.

    Raises InputError if there are more or fewer image tokens in `ids` than counts.
    """
    places = sum(token == config.image_token_id for token in ids)
    if places != len(counts):
        raise InputError(f"the prompt has places for {places} images, but {len(counts)} are given")
    if not places:
        return list(ids)
    if config.image_token_id is None or config.boi_token_id is None or config.eoi_token_id is None:
        raise InputError("this checkpoint has no tokens for images", hint="leave the images out")
    image, begin, end = config.image_token_id, config.boi_token_id, config.eoi_token_id
    expanded: list[int] = []
    remaining = iter(counts)
    for token in ids:
        expanded += [begin, *[image] * next(remaining), end] if token == image else [token]
    return expanded


def _fields(message: Message, *, earlier: bool) -> dict[str, Any]:
    """A message as chat templates read it."""
    assistant = message.role == "assistant"
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, str):
        if assistant:
            fields["content"] = strip_thoughts(message.content)
    else:
        fields["content"] = [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in message.content
        ]
    if message.thought and not earlier:
        names = ("reasoning", "reasoning_content", "thinking")  # templates differ in the name
        fields |= dict.fromkeys(names, message.thought)
    if message.tool_calls:
        fields["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.name:
        fields["name"] = message.name
    if message.call_id:
        fields["tool_call_id"] = message.call_id
    return fields


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
