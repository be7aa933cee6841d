"""What a chat at the terminal keeps between turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from sfumato.cli.dialogue import Picture
from sfumato.cli.options import DecodingOptions
from sfumato.text.chat import Conversation, ImagePart, TextPart


@dataclass
class ChatState:
    """The conversation, its images in order, the settings, and the line being edited."""

    conversation: Conversation
    decoding: DecodingOptions
    pictures: tuple[Picture, ...] = ()
    waiting: list[Picture] = field(default_factory=list)  # images for the next message
    last_message: str = ""
    draft: str = ""  # typed in for the user at the next prompt
    # The conversation, its images and those waiting, as they were before a turn was taken back to
    # be edited: what comes back if the edited one is never answered.
    before_edit: tuple[Conversation, tuple[Picture, ...], list[Picture]] | None = None

    @classmethod
    def begin(cls, decoding: DecodingOptions, *, system: str | None, thinking: bool) -> Self:
        """An empty conversation."""
        conversation = Conversation(thinking=thinking)
        return cls(conversation if system is None else conversation.instruct(system), decoding)

    def with_message(self, message: str) -> tuple[Conversation, tuple[Picture, ...]]:
        """The conversation with the user's next turn, and the images it then shows."""
        waiting = tuple(self.waiting)
        images = tuple(ImagePart() for _ in waiting)
        parts: tuple[TextPart | ImagePart, ...] = (*images, TextPart(message))
        said = self.conversation.say(parts if images else message)
        return said, (*self.pictures, *waiting)

    def take(self, conversation: Conversation, pictures: Sequence[Picture] = ()) -> None:
        """Go on from `conversation`; `pictures` are its images, in order, and maybe later ones."""
        shown = sum(message.image_count for message in conversation.messages)
        self.conversation, self.pictures = conversation, tuple(pictures)[:shown]
        self.waiting = []

    def begin_edit(self, waiting: list[Picture]) -> None:
        """Take the last turn back until its edited form is answered; `waiting` are its images."""
        self.before_edit = (self.conversation, self.pictures, self.waiting)
        self.undo()
        self.waiting = waiting

    def abandon_edit(self) -> None:
        """Put the turn that was to be edited back, if there is one."""
        if self.before_edit is not None:
            self.conversation, self.pictures, self.waiting = self.before_edit
            self.before_edit = None

    def undo(self) -> bool:
        """Take the user's last turn back; whether there was one."""
        earlier = self.conversation.undo()
        changed = earlier != self.conversation
        self.take(earlier, self.pictures)
        return changed

    def reset(self) -> None:
        """Forget all turns; instructions and settings stay."""
        kept = [m for m in self.conversation.messages if m.role in ("system", "developer")]
        self.take(Conversation(tuple(kept[:1]), self.conversation.thinking))

    def take_draft(self) -> str:
        """The line to type in for the user, once."""
        draft, self.draft = self.draft, ""
        return draft
