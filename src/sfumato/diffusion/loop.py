"""The denoising loop in its plain form: the oracle of every faster loop.

Random numbers are drawn in the reference's order: the initial canvas, then at each step one sample
a position, then a whole canvas of fresh ids, used where a position was not accepted. With one row
and an equal seed on the CPU the tokens equal those of `transformers`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import CommitEvent, Generation, GenerationStats, StepEvent
from sfumato.diffusion.samplers import Draws, EntropyBound
from sfumato.diffusion.schedule import LinearTemperature
from sfumato.diffusion.steps import PLAIN, Steps
from sfumato.diffusion.stopping import Attempts, StableAndConfident, first_stop
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
    attempts: Attempts

    @classmethod
    def of(cls, config: GenerationConfig) -> Denoising:
        """The strategies that `config` names."""
        attempts = Attempts.of(config.max_denoising_steps, config.restart_steps)
        return cls(
            LinearTemperature(config.t_min, config.t_max, attempts.steps),
            EntropyBound(config.entropy_bound),
            StableAndConfident(config.stability_threshold, config.confidence_threshold),
            attempts,
        )


@dataclass(frozen=True)
class Watchers:
    """Callbacks for each denoising step and each committed canvas."""

    on_step: OnStep | None = None
    on_commit: OnCommit | None = None


class _Canvases:
    """The canvases of a batch at one step, those of finished rows held as they were.

    Where rows draw apart, finished rows have left the computation: `at` are the rows [R] that the
    tensors of a step belong to. Where they share a generator all rows go on to the end, as in the
    reference, and what finished ones compute is thrown away. Until a row finishes, which in a batch
    of one is the end, the tensors of a step are taken as they are.

    Rows of the batch that are not `writing` [B] have left before: `start` has none of them, and
    what is held of them is zeros.
    """

    def __init__(self, start: Tensor, writing: Tensor) -> None:
        rows, length = len(writing), start.shape[1]
        self.at = writing.nonzero()[:, 0]
        self.current = start.new_zeros(rows, length)
        self.current[self.at] = start
        self.argmax = self.current.clone()
        self.entropies = torch.zeros(rows, length, device=start.device)
        self.accepted = torch.zeros(rows, length, dtype=torch.bool, device=start.device)
        self.finished = ~writing
        self.all_going = len(self.at) == rows
        self.steps = torch.zeros(rows, dtype=torch.long, device=start.device)

    def take(self, argmax: Tensor, current: Tensor, entropies: Tensor, accepted: Tensor) -> None:
        """Put in what a step found [R, L], but for the rows that had finished before it."""
        if self.all_going:
            self.steps += 1
            self.argmax, self.current = argmax, current
            self.entropies, self.accepted = entropies, accepted
            return
        going = ~self.finished[self.at]
        at = self.at[going]
        self.steps[at] += 1
        self.argmax[at], self.current[at] = argmax[going], current[going]
        self.entropies[at], self.accepted[at] = entropies[going], accepted[going]

    def of_step(self, held: Tensor) -> Tensor:
        """What is `held` of the rows that the tensors of a step belong to."""
        return held if self.all_going else held[self.at]

    def finish(self, done: Tensor) -> None:
        """Let the rows that are `done` [R] be finished."""
        if not bool(done.any()):
            return
        if self.all_going:  # from here on rows are written into what the steps gave
            self.argmax, self.current = self.argmax.clone(), self.current.clone()
            self.entropies, self.accepted = self.entropies.clone(), self.accepted.clone()
            self.all_going = False
        self.finished[self.at] |= done

    @property
    def all_finished(self) -> bool:
        """Whether no row goes on."""
        return not self.all_going and bool(self.finished.all())

    def start_anew(self, noise: Tensor) -> None:
        """Put `noise` [R, L] where a step begins, but for the rows that have finished."""
        going = ~self.finished[self.at]
        self.current[self.at[going]] = noise[going]

    def event(self, canvas_index: int, step: int, steps_max: int) -> StepEvent:
        """The step just taken, as watchers may keep it."""
        return StepEvent(
            canvas_index,
            step,
            steps_max,
            self.argmax.clone(),
            self.current.clone(),
            self.entropies.clone(),
            self.accepted.clone(),
            self.finished.clone(),
        )


def refine_canvas(
    net: DiffusionGemma,
    cache: KVCache,
    denoising: Denoising,
    draws: Draws,
    *,
    steps: Steps = PLAIN,
    canvas_index: int = 0,
    on_step: OnStep | None = None,
    writing: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoise one canvas after the cached prefix.

    Returns the argmax canvas [B, L] and the steps each row took [B]. A row that is done keeps its
    canvas while others go on; one that is not done when an attempt ends starts anew from noise.
    `cache` and `draws` have the rows that are `writing` (a mask [B], all if None); the canvas of
    any other row is zeros, and it takes no step.
    """
    vocab_size, length = net.config.text.vocab_size, net.config.canvas_length
    start = draws.canvas(cache.batch_size, length, vocab_size)
    if writing is None:
        writing = torch.ones(len(start), dtype=torch.bool)
    canvases = _Canvases(start, writing.to(start.device))
    believed: Tensor | None = None
    history = denoising.stopping.history()
    attempts = denoising.attempts
    for taken in range(1, attempts.total + 1):
        remaining = torch.tensor(attempts.left(taken), device=canvases.at.device)
        temperature = denoising.temperature.at(remaining)
        current = canvases.of_step(canvases.current)
        step = steps.take(net, current, cache, temperature, believed, draws)
        fresh = draws.canvas(len(canvases.at), length, vocab_size)
        accepted, renoised = denoising.acceptance.accept(
            step.entropies, step.sampled, fresh, net.kernels
        )
        canvases.take(step.argmax, renoised, step.entropies, accepted)
        argmax = canvases.of_step(canvases.argmax)
        done = denoising.stopping.done(argmax, step.entropies, history)
        canvases.finish(done)
        if on_step is not None:
            on_step(canvases.event(canvas_index, taken, attempts.total))
        if canvases.all_finished or taken == attempts.total:
            break
        anew = attempts.left(taken) == 1
        leaving = draws.apart and bool(done.any())
        going = ~done if leaving else None
        believed = None if anew else step.believed(going)
        del step  # its logits, if it has any, are not held through the next pass
        if going is not None:
            canvases.at = canvases.at[going]
            cache, draws = cache.select(going), draws.only(going)
            history = deque((earlier[going] for earlier in history), history.maxlen)
        if anew:
            canvases.start_anew(draws.canvas(len(canvases.at), length, vocab_size))
            history = denoising.stopping.history()
    return canvases.argmax, canvases.steps


@torch.inference_mode()
def generate(
    net: DiffusionGemma,
    cache: KVCache,
    config: GenerationConfig,
    draws: Draws,
    watchers: Watchers = Watchers(),
    steps: Steps = PLAIN,
) -> Generation:
    """Write canvases after the encoded prompt until every row has stopped or is long enough.

    `steps` is how each denoising step is taken, `PlainSteps` or `FusedSteps`.
    Each committed canvas but the last is encoded, so `cache` grows, until a row stops: where rows
    draw apart it leaves the computation, which goes on with a smaller cache. Text is left to the
    caller, who has the tokenizer.
    """
    started = time.perf_counter()
    denoising = Denoising.of(config)
    rows = cache.batch_size
    tokens: list[list[int]] = [[] for _ in range(rows)]
    counts, canvases = [0] * rows, [0] * rows
    open_rows = set(range(rows))
    writing = torch.ones(rows, dtype=torch.bool)  # the rows that `cache` and `draws` have
    for index in range(math.ceil(config.max_new_tokens / net.config.canvas_length)):
        canvas, taken = refine_canvas(
            net,
            cache,
            denoising,
            draws,
            steps=steps,
            canvas_index=index,
            on_step=watchers.on_step,
            writing=writing,
        )
        if watchers.on_commit is not None:
            watchers.on_commit(CommitEvent(index, canvas))
        kept = [0] * rows  # what each row takes of this canvas
        for row in sorted(open_rows):
            written = canvas[row].tolist()
            stop = first_stop(written, config.eos_token_id)
            kept[row] = len(written) if stop is None else stop + 1
            tokens[row] += written[: kept[row]]
            counts[row] += int(taken[row])
            canvases[row] += 1
            if stop is not None or len(tokens[row]) >= config.max_new_tokens:
                open_rows.discard(row)
        if not open_rows:
            break
        if draws.apart and len(open_rows) < int(writing.sum()):
            still = torch.tensor([row in open_rows for row in range(rows)])
            cache, draws = cache.select(still[writing]), draws.only(still[writing])
            writing = still
        net.encode(_padded(canvas, kept, config.pad_token_id)[writing], cache)
    tokens = [row[: config.max_new_tokens] for row in tokens]
    rates = [len(row) / count for row, count in zip(tokens, counts, strict=True)]
    seconds = time.perf_counter() - started
    return Generation(tokens, None, GenerationStats(counts, canvases, rates, seconds))


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
