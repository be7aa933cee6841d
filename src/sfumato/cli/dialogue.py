"""One model and one conversation: what `ask` and `chat` have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.checkpoint import display_name
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.options import DecodingOptions, ModelOptions, chosen_model
from sfumato.cli.terminal import note, output_console, printable
from sfumato.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.api import Model
    from sfumato.cli.live.live_canvas import LiveCanvas
    from sfumato.config.generation import GenerationConfig
    from sfumato.diffusion.events import CommitEvent, Generation, StepEvent
    from sfumato.text.chat import Conversation
    from sfumato.text.thoughts import Parsed


@dataclass(frozen=True)
class Reply:
    """What the model said and what it took."""

    parsed: Parsed
    tokens: int
    steps: int
    canvases: int
    tokens_per_forward: float
    seconds: float  # the model's own, without the view's
    finished: bool  # a stop token came, rather than the limit of tokens

    def figures(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "tokens": self.tokens,
            "steps": self.steps,
            "canvases": self.canvases,
            "tokens_per_forward": round(self.tokens_per_forward, 3),
            "seconds": round(self.seconds, 4),
            "finish": "stop" if self.finished else "length",
        }


@dataclass(frozen=True)
class Picture:
    """An image ready for the model: its soft tokens' patches and their number."""

    value: Any
    soft_tokens: int


@dataclass(frozen=True)
class Dialogue:
    """A loaded model with its name."""

    model: Model
    name: str

    @classmethod
    def load(cls, options: ModelOptions) -> Dialogue:
        """Load the model that `options` and the environment name."""
        name = chosen_model(options.model)
        settings = Settings.from_environment()
        with leaving_at_once():
            import torch

            from sfumato.api import load
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if name is not None:
            note(f"loading {name}")
        model = load(
            name, dtype=options.dtype, device=options.device, activations=options.activations
        )
        return cls(replace(model, loop=model.fastest_loop), display_name(name))

    def settings(self, options: DecodingOptions) -> GenerationConfig:
        """The checkpoint's decoding settings with the options given."""
        return options.over(self.model.generation_config)

    def check_thinking(self, wanted: bool) -> None:
        """Raise InputError if thinking is wanted of a model whose template has no switch for it."""
        if wanted and not self.model.template.supports_thinking:
            from sfumato.errors import InputError

            raise InputError(f"{self.name} has no thinking to switch on")

    def picture(self, path: Path) -> Picture:
        """Read one image. Raises MediaError, or InputError for a model that takes none."""
        from sfumato.errors import InputError

        vision, folder = self.model.config.vision, self.model.folder
        if vision is None or folder is None:
            raise InputError(
                f"{self.name} takes no images", hint="ask with text alone, or name another model"
            )
        from sfumato.config.processor import load_processor_config
        from sfumato.media.image import ImageSettings, load_image

        image = load_image(path, ImageSettings.of(load_processor_config(folder, vision)))
        return Picture(image, image.num_soft_tokens)

    def prompt(self, conversation: Conversation, pictures: Sequence[Picture] = ()) -> list[int]:
        """Token ids of the conversation, images in their places."""
        from sfumato.text.chat import expand_images

        ids = self.model.chat.render_conversation(conversation)
        counts = [picture.soft_tokens for picture in pictures]
        return expand_images(ids, self.model.config, counts) if counts else ids

    def reply(
        self,
        conversation: Conversation,
        options: DecodingOptions,
        pictures: Sequence[Picture] = (),
        live: LiveCanvas | None = None,
    ) -> Reply:
        """Let the model answer; with `live`, show how."""
        import torch

        settings = self.settings(options)
        ids = self.prompt(conversation, pictures)
        watch = _Watch(live)
        with _shown(live):
            out = self.model.generate(
                torch.tensor([ids]),
                seed=options.seed,
                generation=settings,
                mode=options.mode,
                images=[picture.value for picture in pictures] or None,
                on_step=watch.on_step if live is not None else None,
                on_commit=watch.on_commit if live is not None else None,
            )
        return self._reply(out, settings, out.stats.seconds - watch.seconds)

    def live_canvas(
        self, prompt: str, options: DecodingOptions, pace: float | None
    ) -> LiveCanvas | None:
        """The view for a terminal; None in autoregressive mode, which has no canvas."""
        if options.mode == "autoregressive":
            return None
        from sfumato.cli.live.live_canvas import DEFAULT_PACE, LiveCanvas
        from sfumato.cli.live.tokens import TokenizerText

        settings = self.settings(options)
        return LiveCanvas(
            output_console(),
            TokenizerText(self.model.tokenizer, settings.eos_token_id),
            prompt,
            pace=DEFAULT_PACE if pace is None else pace,
            max_new_tokens=settings.max_new_tokens,
        )

    def _reply(self, out: Generation, settings: GenerationConfig, seconds: float) -> Reply:
        from sfumato.text.thoughts import parse

        tokens = out.tokens[0]
        return Reply(
            parsed=parse(tokens, self.model.tokenizer, stop_ids=settings.eos_token_id),
            tokens=len(tokens),
            steps=out.stats.steps[0],
            canvases=out.stats.canvases[0],
            tokens_per_forward=out.stats.tokens_per_forward[0],
            seconds=seconds,
            finished=bool(tokens) and tokens[-1] in settings.eos_token_id,
        )


@contextlib.contextmanager
def _shown(live: LiveCanvas | None) -> Iterator[None]:
    """`live` on the screen, if there is one, and the keyboard off it."""
    if live is None:
        yield
        return
    from sfumato.cli.live.keyboard import quiet_keyboard

    with quiet_keyboard(), live:
        yield


class _Watch:
    """Hands events to the view and counts the time that takes: it is not the model's."""

    def __init__(self, live: LiveCanvas | None) -> None:
        self._live = live
        self.seconds = 0.0

    def on_step(self, event: StepEvent) -> None:
        with self._timed():
            assert self._live is not None
            self._live.on_step(event)

    def on_commit(self, event: CommitEvent) -> None:
        with self._timed():
            assert self._live is not None
            self._live.on_commit(event)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begun


def show_reply(console: Console, reply: Reply, *, shown: bool) -> None:
    """End an answer on a terminal with its figures; `shown` if the live canvas left its text."""
    from rich.text import Text

    if not shown:
        console.print(Text(printable(reply.parsed.answer.strip("\n"))), soft_wrap=True)
    console.print(Text(figures_line(reply), "dim"), soft_wrap=True)


def figures_line(reply: Reply) -> str:
    """The numbers under an answer."""
    parts = [f"{reply.steps} steps"]
    if reply.canvases:
        parts.append(f"{reply.canvases} canvas" + ("es" if reply.canvases > 1 else ""))
    parts += [f"{reply.tokens_per_forward:.1f} tokens per forward", f"{reply.seconds:.2f} s"]
    if not reply.finished:
        parts.append("cut off at the most tokens allowed")
    return ", ".join(parts)
