"""Run task sets on a model: prompts in batches, every answer checked, the costs counted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfumato.api import Mode, Model
from sfumato.config.generation import GenerationConfig
from sfumato.errors import EvaluationError
from sfumato.evaluation.metrics import Outcome, TaskResult
from sfumato.evaluation.task_sets import TaskSet, Work, is_solved, task_sets
from sfumato.tasks.base import Example
from sfumato.text.chat import Message

MAX_FAILURES = 20  # kept of each task, for the report


@dataclass(frozen=True)
class Failure:
    """A prompt, the answer it should have had, and the one it got."""

    task: str
    index: int
    seed: int
    prompt: str
    expected: str
    got: str


@dataclass(frozen=True)
class Progress:
    """How far one task is. `setting` names the row of a sweep, and is empty without one."""

    task: str
    done: int
    total: int
    solved: int
    seconds: float
    setting: str = ""


@dataclass(frozen=True)
class Plan:
    """How examples are answered: everything that figures depend on besides model and examples.

    `batch_size` changes the time, and an answer only where the rounding of sums tips a tie.
    """

    generation: GenerationConfig
    mode: Mode = "diffusion"
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise EvaluationError(f"a batch must hold 1 row or more, not {self.batch_size}")
        if not 0 <= self.seed < 2**63:
            raise EvaluationError(f"the seed must be from 0 to 2^63 - 1, not {self.seed}")


@dataclass(frozen=True)
class EvaluationReport:
    """A result a task, the plan they were made by, and up to 20 failures of each task."""

    plan: Plan
    results: tuple[TaskResult, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Rendered:
    """A task set with its prompts as token ids, ready to be asked again and again."""

    tasks: TaskSet
    prompts: tuple[tuple[int, ...], ...]


OnProgress = Callable[[Progress], None]


def evaluate(
    model: Model,
    work: Work,
    n: int = 1000,
    seed: int = 0,
    generation: GenerationConfig | None = None,
    mode: Mode = "diffusion",
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> EvaluationReport:
    """Answer every example of `work` and count the right ones.

    `work` is task names (`"sudoku:10-40"`: its first `n` held-out examples for `seed`), `TaskSet`s
    or examples. `generation` replaces the checkpoint's settings. Each example is decoded with a
    seed of its own, made of `seed` and its index, so that no answer hangs on what else is in the
    batch. `on_progress` is called after each batch. Raises EvaluationError and InputError.
    """
    plan = Plan(generation or model.generation_config, mode, seed, batch_size)
    return evaluate_rendered(model, render(model, task_sets(work, n, seed)), plan, on_progress)


def render(model: Model, sets: Sequence[TaskSet]) -> tuple[Rendered, ...]:
    """Each prompt as one user turn in the model's chat template."""
    return tuple(
        Rendered(
            one, tuple(tuple(model.chat.render([Message("user", e.prompt)])) for e in one.examples)
        )
        for one in sets
    )


def evaluate_rendered(
    model: Model,
    rendered: Sequence[Rendered],
    plan: Plan,
    on_progress: OnProgress | None = None,
) -> EvaluationReport:
    """`evaluate` for prompts that are rendered already."""
    for one in rendered:
        _check_lengths(model, one, plan)
    results: list[TaskResult] = []
    failures: list[Failure] = []
    for one in rendered:
        outcomes, seconds = _answer(model, one, plan, on_progress)
        results.append(TaskResult.of(one.tasks.name, outcomes, seconds))
        failures += _failures(one.tasks.name, outcomes)
    return EvaluationReport(plan, tuple(results), tuple(failures))


def row_seed(seed: int, index: int) -> int:
    """The seed of the example at `index`: well mixed, since generators keep only some bits."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _answer(
    model: Model, rendered: Rendered, plan: Plan, on_progress: OnProgress | None
) -> tuple[list[Outcome], float]:
    """Outcomes in the order of the examples, and the seconds that decoding took."""
    outcomes: list[Outcome] = []
    seconds, order = 0.0, _order(rendered)
    for start in range(0, len(order), plan.batch_size):
        answered, took = _batch(model, rendered, order[start : start + plan.batch_size], plan)
        seconds += took
        outcomes += answered
        if on_progress is not None:
            solved = sum(one.solved for one in outcomes)
            name = rendered.tasks.name
            on_progress(Progress(name, len(outcomes), len(order), solved, seconds))
    return sorted(outcomes, key=lambda one: one.index), seconds


def _batch(
    model: Model, rendered: Rendered, chosen: Sequence[int], plan: Plan
) -> tuple[list[Outcome], float]:
    began = time.perf_counter()
    ids, mask = model.pad([rendered.prompts[index] for index in chosen])
    seeds = [row_seed(plan.seed, index) for index in chosen]
    out = model.generate(
        ids,
        seeds,
        generation=plan.generation,
        mode=plan.mode,
        attention_mask=None if bool(mask.all()) else mask,
    )
    seconds = time.perf_counter() - began
    assert out.text is not None, "a model with a chat template has a tokenizer"
    examples = rendered.tasks.examples
    outcomes = [
        Outcome(
            index=index,
            example=examples[index],
            text=out.text[row],
            solved=is_solved(examples[index], out.text[row]),
            seed=seeds[row],
            tokens=len(out.tokens[row]),
            steps=out.stats.steps[row],
            canvases=out.stats.canvases[row],
        )
        for row, index in enumerate(chosen)
    ]
    return outcomes, seconds


def _order(rendered: Rendered) -> list[int]:
    """Places of the examples, so that a batch holds rows that take about as many steps.

    A batch goes on until its last row is done. The hardest and longest come first: what does not
    fit in memory then fails at once.
    """

    def cost(index: int) -> tuple[int, int, int]:
        example = rendered.tasks.examples[index]
        return _holes(example), len(rendered.prompts[index]), len(example.answer)

    return sorted(range(len(rendered.prompts)), key=cost, reverse=True)


def _holes(example: Example) -> int:
    holes = example.detail.get("holes", 0)
    return holes if isinstance(holes, int) else 0


def _check_lengths(model: Model, rendered: Rendered, plan: Plan) -> None:
    """Refuse a prompt that is too long now, and not after an hour of others."""
    new, limit = plan.generation.max_new_tokens, model.config.text.max_position_embeddings
    if plan.mode == "diffusion":
        length = model.config.canvas_length
        new = -(-new // length) * length
    for index, prompt in enumerate(rendered.prompts):
        if len(prompt) + new > limit:
            raise EvaluationError(
                f"example {index + 1} of {rendered.tasks.name} is too long: {len(prompt)} tokens "
                f"and {new} new ones, but this model's maximum context length is {limit} tokens",
                hint="leave it out, or allow fewer new tokens",
            )


def _failures(task: str, outcomes: Sequence[Outcome]) -> list[Failure]:
    wrong = [one for one in outcomes if not one.solved][:MAX_FAILURES]
    return [
        Failure(task, one.index, one.seed, one.example.prompt, one.example.answer, one.text)
        for one in wrong
    ]
