"""The checkpoint's own chat template, rendered apart from this process and told apart from users.

The result is a list of segments: control tokens that the template wrote, and text. How that
stays true whatever users write is in docs/decisions/0010-control-tokens.md; how a hostile
template is held is in 0011-template-sandbox.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.config.checkpoint_file import is_there, read_bounded
from sfumato.config.json_file import read_json
from sfumato.errors import InputError, TemplateError
from sfumato.text.sandbox import Limits, Worker
from sfumato.text.spellings import Control, Segment, free_mark
from sfumato.text.tokenizer import MAX_CONFIG_BYTES, Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
# Shares no character with any control token: what it turns into is the template's own doing.
_PROBE = [{"role": "user", "content": "水"}]


class ChatTemplate:
    """A chat template in its own process, which starts with the first `render` (or `start`)."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        name: str = TEMPLATE_FILE,
        limits: Limits | None = None,
    ) -> None:
        """`source` is Jinja, `name` what errors call it."""
        limits = limits or Limits()
        if len(source) > limits.source:
            raise TemplateError(
                f"{name}: {len(source):,} characters, more than the {limits.source:,} a chat "
                "template may have"
            )
        self.name = name
        self._spellings = tokenizer.spellings
        self._named = tokenizer.named
        load = {"do": "load", "source": source, "controls": tokenizer.control}
        self._worker = Worker(load, limits)
        self._variables: frozenset[str] | None = None

    @classmethod
    def from_folder(
        cls, folder: str | Path, tokenizer: Tokenizer, *, limits: Limits | None = None
    ) -> ChatTemplate:
        """The template of a checkpoint: chat_template.jinja, else the one in a JSON file beside it.

        Raises TemplateError if there is none or it cannot be read.
        """
        name, source = _find_source(Path(folder))
        return cls(source, tokenizer, name=name, limits=limits)

    def start(self) -> None:
        """Start the process and check the template now instead of at the first `render`.

        Raises TemplateError for a template that cannot be used.
        """
        if self._variables is not None:
            return
        loaded = self._worker.start()
        self._check(loaded, "")
        self._variables = frozenset(loaded["variables"])
        for segment in self._segments({"messages": _PROBE}):
            if not isinstance(segment, Control):
                self._refuse_assembled(segment)

    @property
    def supports_thinking(self) -> bool:
        """Whether the template has the `enable_thinking` switch."""
        self.start()
        return self._variables is not None and "enable_thinking" in self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[Segment]:
        """The prompt of `messages`, dicts in the common form, as segments.

        Every string in `messages` and `tools` is untrusted; roles too. Raises TemplateError if the
        template fails, refuses the conversation or takes too long, InputError for what is no text.
        """
        self.start()
        return self._segments(
            {
                "messages": list(messages),
                "tools": list(tools) or None,
                "enable_thinking": enable_thinking,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def close(self) -> None:
        """End the process. It is also ended when this object or the program goes away."""
        self._worker.close()

    def _segments(self, context: Mapping[str, Any]) -> list[Segment]:
        try:
            plain = json.dumps(context, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as problem:
            raise InputError(f"the conversation is not text and JSON: {problem}") from None
        mark = free_mark(plain)
        if mark is None:
            raise InputError("the conversation uses every private character of Unicode")
        named = {name: self._spellings.mark(text, mark) for name, text in self._named.items()}
        whole = {"documents": None, "add_generation_prompt": True} | named | dict(context)
        reply = self._worker.ask({"do": "render", "context": whole, "mark": mark})
        self._check(reply, mark)
        return self._spellings.split(reply["text"], mark)

    def _check(self, reply: Mapping[str, Any], mark: str) -> None:
        if "error" not in reply:
            return
        message = reply["error"].replace(mark, "") if mark else reply["error"]
        if reply["kind"] == "refused":
            raise TemplateError(
                f"{self.name} refuses this conversation: {message}",
                hint="change the order or the roles of the messages",
            )
        raise TemplateError(f"{self.name}: {message}", hint="the checkpoint's template is at fault")

    def _refuse_assembled(self, text: str) -> None:
        found = next(self._spellings.find(text), None)
        if found is not None:
            raise TemplateError(
                f"{self.name}: it puts the control token {found[1]!r} together from parts",
                hint="control tokens can be told from a user's text only if spelled in full",
            )


def _find_source(folder: Path) -> tuple[str, str]:
    path = folder / TEMPLATE_FILE
    if is_there(path):
        data = read_bounded(path, MAX_CONFIG_BYTES, error=TemplateError)
        try:
            return str(path), data.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise TemplateError(f"{path}: cannot be read: {problem}") from None
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if not is_there(path):
            continue
        fields = read_json(path, limit=MAX_CONFIG_BYTES, error=TemplateError)
        if fields.get("chat_template") is not None:
            return str(path), _choose(fields["chat_template"], path)
    raise TemplateError(
        f"{folder}: this checkpoint has no chat template",
        hint=f"put its {TEMPLATE_FILE} beside tokenizer.json",
    )


def _choose(field: Any, path: Path) -> str:
    """The template in a `chat_template` field: a string, or a list of named ones."""
    if isinstance(field, str):
        return field
    if isinstance(field, list) and all(isinstance(entry, dict) for entry in field):
        named = {entry.get("name"): entry.get("template") for entry in field}
        if isinstance(default := named.get("default"), str):
            return default
        known = ", ".join(sorted(str(name) for name in named)) or "none"
        raise TemplateError(f"{path}: no chat template is called 'default'; there are: {known}")
    raise TemplateError(f"{path}: chat_template is neither a text nor a list of named ones")
