"""The passes that are timed, at one batch size and length of the context."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.benchmark.timing import Effort, Timing, seconds_of, settle, watching
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import StepEvent
from sfumato.diffusion.loop import Denoising, OnStep, refine_canvas
from sfumato.diffusion.samplers import draws_for
from sfumato.diffusion.steps import PLAIN, FusedSteps
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma

# Up to here a context is encoded. What is longer is filled up with copies of what is there: the
# time of a pass depends on the length alone, and encoding 256K positions would take hours.
ENCODED = 4096
FILL = 256  # positions that `lengthen` copies at once


@dataclass(frozen=True)
class Passes:
    """Ready-made inputs. B rows, each with a context of T positions; canvases of L."""

    network: DiffusionGemma
    cache: KVCache  # [B, T] positions
    canvas: Tensor  # [B, L]
    beliefs: Tensor  # [B, L, V], the logits of an earlier step

    @classmethod
    def make(cls, network: DiffusionGemma, rows: int, context: int, seed: int = 0) -> Passes:
        """Encode a random context and take one step, whose logits later ones look back at."""
        cache = filled_cache(network, rows, context, seed)
        canvas = random_ids(network, rows, network.config.canvas_length, seed + 1)
        beliefs = network.denoise(canvas, cache).to(network.dtype)
        return cls(network, cache, canvas, beliefs)

    def encode(self, tokens: int) -> Callable[[], object]:
        """Encode a prompt of `tokens` in each row."""
        ids = random_ids(self.network, self.cache.batch_size, tokens, 2)
        return lambda: self.network.encode(ids)

    def commit(self) -> Callable[[], object]:
        """Encode a canvas after the context; the context is left as it was."""
        return lambda: self.network.encode(self.canvas, self.cache.fork())

    def denoise(self, *, self_conditioning: bool) -> Callable[[], object]:
        """One denoise pass."""
        beliefs = self.beliefs if self_conditioning else None
        return lambda: self.network.denoise(self.canvas, self.cache, beliefs)

    def head(self) -> Callable[[], object]:
        """The head over every position of a canvas."""
        width = self.network.config.text.hidden_size
        hidden = torch.randn(*self.canvas.shape, width, device=self.network.device)
        hidden = hidden.to(self.network.dtype)
        return lambda: self.network.head(hidden)

    def token(self) -> Callable[[], object]:
        """The next token left to right: encode one, head, argmax."""
        ids = self.canvas[:, :1]

        def step() -> Tensor:
            hidden, _ = self.network.encode_hidden(ids, self.cache.fork())
            return self.network.head(hidden[:, -1]).argmax(dim=-1)

        return step

    def layers(self) -> Callable[[], object]:
        """A denoise pass without its head and without self-conditioning."""
        return lambda: self.network.denoise_hidden(self.canvas, self.cache)

    @property
    def loop(self) -> str:
        """The steps that the network's loop takes: "fast" where it has kernels, else "plain"."""
        return "plain" if self.network.kernels is None else "fast"

    def first_step(self) -> Callable[[], object]:
        """A whole step of the loop that has nothing to look back at."""
        return lambda: self._refine(1, None)

    def whole_steps(self, effort: Effort) -> Timing:
        """Denoising steps of the loop itself, sampling and renoising with them.

        The first step, which has nothing to look back at, is left out.
        """
        device = self.network.device
        once = seconds_of(self.first_step(), device)
        count = max(effort.repeats, min(200, int(effort.seconds / max(once, 1e-9))))
        ends: list[float] = []

        def on_step(_event: StepEvent) -> None:
            settle(device)
            ends.append(time.perf_counter())

        with watching(device) as watch:
            self._refine(count + 1, on_step)
        return watch.timing([after - before for before, after in itertools.pairwise(ends)])

    def _refine(self, count: int, on_step: OnStep | None) -> None:
        """Take exactly `count` steps: more agreement is asked for than there are steps."""
        config = GenerationConfig(max_denoising_steps=count, stability_threshold=count + 1)
        refine_canvas(
            self.network,
            self.cache,
            Denoising.of(config),
            draws_for(list(range(self.cache.batch_size)), self.network.device),
            steps=FusedSteps() if self.loop == "fast" else PLAIN,
            on_step=on_step,
        )


def random_ids(network: DiffusionGemma, rows: int, length: int, seed: int) -> Tensor:
    """Ids [rows, length], evenly drawn; image tokens among them are only numbers here."""
    generator = torch.Generator().manual_seed(seed)
    size = (rows, length)
    ids = torch.randint(network.config.text.vocab_size, size, generator=generator)
    return ids.to(network.device)


def filled_cache(network: DiffusionGemma, rows: int, length: int, seed: int = 0) -> KVCache:
    """A cache of `length` positions in each of `rows`."""
    ids = random_ids(network, rows, min(length, ENCODED), seed)
    cache = network.encode(ids)
    if cache.length < length:
        lengthen(network, cache, ids, length)
    return cache


@torch.inference_mode()
def lengthen(network: DiffusionGemma, cache: KVCache, ids: Tensor, length: int) -> None:
    """Append what the layers make of the embeddings of `ids`, again and again, up to `length`.

    Of the first `FILL` of them: what every layer makes of more is memory that no model would hold.
    """
    ids = ids[:, :FILL]
    steps = torch.arange(ids.shape[1], device=ids.device)
    x = network.embed(ids)
    tables = network.tables(steps.expand_as(ids), x.dtype)
    made = [layer.project(x, tables[layer.kind])[1] for layer in network.layers]
    while cache.length < length:
        count = min(ids.shape[1], length - cache.length)
        for index, fresh in enumerate(made):
            keys, values = fresh.keys[:, :, :count], fresh.values[:, :, :count]
            # A copy: pages of the cache keep what they are given, and would all be this one.
            raw = None if fresh.raw is None else fresh.raw[:, :, :count].clone()
            cache.extend(index, fresh._replace(keys=keys, values=values, raw=raw))
        assert cache.next_position is not None
        cache.append(cache.next_position[:, None] + steps[:count])
