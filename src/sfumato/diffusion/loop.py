"""The denoising loop in its plain form: the oracle of every faster loop.

Random numbers are drawn in the reference's order: the initial canvas, then at each step one sample
a position, then a whole canvas of fresh ids, used where a position was not accepted. With one row
and an equal seed on the CPU the tokens equal those of `transformers`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import CommitEvent, Generation, GenerationStats, StepEvent
from sfumato.diffusion.samplers import Draws, EntropyBound, entropy
from sfumato.diffusion.schedule import LinearTemperature
from sfumato.diffusion.stopping import StableAndConfident, first_stop
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma

OnStep = Callable[[StepEvent], None]
OnCommit = Callable[[CommitEvent], None]


@dataclass(frozen=True)
class Denoising:
    """The strategies that refine one canvas."""

    temperature: LinearTemperature
    acceptance: EntropyBound
    stopping: StableAndConfident
    max_steps: int

    @classmethod
    def of(cls, config: GenerationConfig) -> Denoising:
        """The strategies that `config` names."""
        return cls(
            LinearTemperature(config.t_min, config.t_max, config.max_denoising_steps),
            EntropyBound(config.entropy_bound),
            StableAndConfident(config.stability_threshold, config.confidence_threshold),
            config.max_denoising_steps,
        )


@dataclass(frozen=True)
class Watchers:
    """Callbacks for each denoising step and each committed canvas."""

    on_step: OnStep | None = None
    on_commit: OnCommit | None = None


class _Forward:
    """The network over a batch, without the finished rows where rows are `apart`."""

    def __init__(self, net: DiffusionGemma, cache: KVCache, *, apart: bool) -> None:
        self.net, self.cache, self.apart = net, cache, apart
        self._finished: Tensor | None = None
        self._part = cache  # the cache of the rows that are left

    def logits(
        self, current: Tensor, believed: Tensor | None, finished: Tensor, temperature: Tensor
    ) -> Tensor:
        """Temperature-scaled logits [B, L, V]; those of left-out rows are the step's before."""
        if not self.apart or believed is None or not bool(finished.any()):
            return self.net.denoise(current, self.cache, believed) / temperature
        going = ~finished
        if self._finished is None or not finished.equal(self._finished):
            self._finished, self._part = finished, self.cache.select(going)
        logits = believed.to(torch.float32, copy=True)
        fresh = self.net.denoise(current[going], self._part, believed[going])
        logits[going] = fresh / temperature
        return logits


def refine_canvas(
    net: DiffusionGemma,
    cache: KVCache,
    denoising: Denoising,
    draws: Draws,
    *,
    canvas_index: int = 0,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoise one canvas after the cached prefix.

    Returns the argmax canvas [B, L] and the steps each row took [B]. A row that is done keeps its
    canvas while others go on.
    """
    vocab_size, length = net.config.text.vocab_size, net.config.canvas_length
    rows = cache.batch_size
    current = draws.canvas(rows, length, vocab_size)
    argmax, believed = current, None
    steps = torch.zeros(rows, dtype=torch.long, device=current.device)
    finished = torch.zeros(rows, dtype=torch.bool, device=current.device)
    history = denoising.stopping.history()
    forward = _Forward(net, cache, apart=draws.apart)
    for taken in range(1, denoising.max_steps + 1):
        steps += ~finished
        remaining = torch.tensor(denoising.max_steps + 1 - taken, device=current.device)
        temperature = denoising.temperature.at(remaining)
        logits = forward.logits(current, believed, finished, temperature)
        sampled = draws.sample(torch.softmax(logits, dim=-1), finished)
        entropies = entropy(logits)
        accepted = denoising.acceptance.accept(entropies)
        fresh = draws.canvas(rows, length, vocab_size, finished)
        renoised = torch.where(accepted, sampled, fresh)
        held = finished[:, None]
        argmax = torch.where(held, argmax, logits.argmax(dim=-1))
        current = torch.where(held, current, renoised)
        finished = finished | denoising.stopping.done(argmax, entropies, history)
        believed = logits.to(net.dtype)
        if on_step is not None:
            on_step(
                StepEvent(
                    canvas_index,
                    taken,
                    denoising.max_steps,
                    argmax,
                    current,
                    entropies,
                    accepted,
                    finished,
                )
            )
        if bool(finished.all()):
            break
    return argmax, steps


@torch.inference_mode()
def generate(
    net: DiffusionGemma,
    cache: KVCache,
    config: GenerationConfig,
    draws: Draws,
    watchers: Watchers = Watchers(),
) -> Generation:
    """Write canvases after the encoded prompt until every row has stopped or is long enough.

    Each committed canvas but the last is encoded, so `cache` grows. Text is left to the caller,
    who has the tokenizer.
    """
    started = time.perf_counter()
    denoising = Denoising.of(config)
    rows = cache.batch_size
    tokens: list[list[int]] = [[] for _ in range(rows)]
    steps, canvases = [0] * rows, [0] * rows
    open_rows = set(range(rows))
    for index in range(math.ceil(config.max_new_tokens / net.config.canvas_length)):
        canvas, taken = refine_canvas(
            net, cache, denoising, draws, canvas_index=index, on_step=watchers.on_step
        )
        if watchers.on_commit is not None:
            watchers.on_commit(CommitEvent(index, canvas))
        kept = [0] * rows  # what each row takes of this canvas
        for row in sorted(open_rows):
            written = canvas[row].tolist()
            stop = first_stop(written, config.eos_token_id)
            kept[row] = len(written) if stop is None else stop + 1
            tokens[row] += written[: kept[row]]
            steps[row] += int(taken[row])
            canvases[row] += 1
            if stop is not None or len(tokens[row]) >= config.max_new_tokens:
                open_rows.discard(row)
        if not open_rows:
            break
        net.encode(_padded(canvas, kept, config.pad_token_id), cache)
    tokens = [row[: config.max_new_tokens] for row in tokens]
    rates = [len(row) / count for row, count in zip(tokens, steps, strict=True)]
    seconds = time.perf_counter() - started
    return Generation(tokens, None, GenerationStats(steps, canvases, rates, seconds))


def _padded(canvas: Tensor, kept: list[int], pad_token_id: int | None) -> Tensor:
    """The canvas [B, L] to encode: rows that have stopped are padding after what they `kept`.

    What they hold no longer matters to them, but the reference pads them so, and the other rows'
    rounding depends on it through the sizes of the experts' products.
    """
    if pad_token_id is None:
        return canvas
    places = torch.arange(canvas.shape[1], device=canvas.device)
    ends = torch.tensor(kept, device=canvas.device)[:, None]
    return torch.where(places < ends, canvas, pad_token_id)
