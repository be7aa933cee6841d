"""Models to evaluate in a moment: one that knows its answers, and a tiny random network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from sfumato.api import SMALL_FOLDER, Model
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import Generation, GenerationStats
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.text.chat import Message
from tests.helpers import Shape, randomise, tiny_config

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass
class Oracle:
    """Looks like a Model: prompts are their characters, answers come from a function.

    Steps are the prompt's length modulo 7, and one more, so that rows differ.
    """

    answer: Callable[[str], str]
    generation_config: GenerationConfig = field(default_factory=GenerationConfig)
    batches: list[list[str]] = field(default_factory=list)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    calls: list[tuple[GenerationConfig, str]] = field(default_factory=list)
    folder: Path | None = None
    revision: str | None = None

    config: Any = field(
        default_factory=lambda: SimpleNamespace(
            canvas_length=8, text=SimpleNamespace(max_position_embeddings=2000)
        )
    )
    network: Any = field(
        default_factory=lambda: SimpleNamespace(
            dtype=torch.float32, device=torch.device("cpu"), kernels=None
        )
    )

    @property
    def chat(self) -> Any:
        return SimpleNamespace(render=self._render)

    def _render(self, messages: Sequence[Message]) -> list[int]:
        content = messages[0].content
        assert isinstance(content, str)
        assert [message.role for message in messages] == ["user"]
        return [ord(letter) for letter in content]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        return ids, ids != 0

    def generate(
        self,
        ids: Tensor,
        seeds: list[int],
        *,
        generation: GenerationConfig,
        mode: str,
        attention_mask: Tensor | None,
    ) -> Generation:
        real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask
        prompts = [
            "".join(map(chr, row[mask].tolist())) for row, mask in zip(ids, real, strict=True)
        ]
        assert attention_mask is None or not bool(attention_mask.all())
        self.batches.append(prompts)
        self.calls.append((generation, mode))
        for prompt, seed in zip(prompts, seeds, strict=True):
            self.seeds.setdefault(prompt, []).append(seed)
        texts = [self.answer(prompt) for prompt in prompts]
        diffusion = mode == "diffusion"
        tokens = [[7] * 6 for _ in prompts]
        steps = [len(prompt) % 7 + 1 if diffusion else 6 for prompt in prompts]
        rates = [6 / count for count in steps]
        stats = GenerationStats(steps, [1 if diffusion else 0] * len(prompts), rates, 0.01)
        return Generation(tokens, texts, stats)

    @property
    def model(self) -> Model:
        """Itself, as the type that is asked for."""
        return cast(Model, self)


def tiny_model(folder: Path, seed: int = 3) -> Model:
    """A random network with the small model's vocabulary and chat template, files in `folder`."""
    for name in TEXT_FILES:
        shutil.copy(SMALL_FOLDER / name, folder / name)
    network = DiffusionGemma(tiny_config(Shape("SF", hidden=32, vocab=2048, canvas=6, experts=2)))
    randomise(network, seed)
    settings = GenerationConfig(
        max_new_tokens=12, max_denoising_steps=4, eos_token_id=(1, 5), confidence_threshold=20.0
    )
    return Model(network.eval(), settings, folder)
