"""Let a model answer prompts, and note what its matrices are multiplied with meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.api import Model
from sfumato.errors import EvaluationError, InputError
from sfumato.evaluation.run import row_seed
from sfumato.model.watch import watching
from sfumato.tasks.heldout import read_prompts
from sfumato.tasks.registry import task
from sfumato.text.chat import Message
from sfumato.weights.moments import Moments

TASK_PROMPTS = 24  # of each task, unless told otherwise

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prompts:
    """What is answered, each as one user turn in the model's chat template, and the seed."""

    texts: tuple[str, ...]
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.texts:
            raise EvaluationError("there is no prompt to calibrate with", hint="give one or more")
        if self.batch_size < 1:
            raise EvaluationError(f"a batch must hold 1 row or more, not {self.batch_size}")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells other prompts, another seed or other batches apart."""
        texts = hashlib.blake2b(json.dumps(self.texts).encode(), digest_size=16).hexdigest()
        return {"prompts": texts, "seed": self.seed, "batch_size": self.batch_size}


def gather_prompts(sources: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Prompts of tasks, by name, from what models are trained on, and of JSON-lines files.

    `count` is how many of each; None takes 24 of a task and all of a file. Raises InputError for
    an unknown task and EvaluationError for a file that cannot be read or has fewer.
    """
    if count is not None and count < 1:
        raise InputError(f"{count} prompts cannot be answered", hint="ask for 1 or more")
    prompts: list[str] = []
    for source in sources:
        if not source.endswith(".jsonl"):
            made = range(TASK_PROMPTS if count is None else count)
            prompts += (task(source).example(0, index, "train").prompt for index in made)
            continue
        found = read_prompts(source)
        if count is not None and len(found) < count:
            raise EvaluationError(f"{source} holds {len(found)} prompts, not {count}")
        prompts += found[:count]
    return tuple(prompts)


def calibrate(
    model: Model, prompts: Prompts, moments: Moments, on_progress: OnProgress | None = None
) -> None:
    """Answer the prompts by the checkpoint's own settings; `moments` notes all inputs.

    So it sees what decoding will see: prompts, canvases from noise to text, beliefs. `on_progress`
    hears how many prompts of how many are answered. Raises InputError and ContextLengthError.
    """
    model = model.with_fastest_loop()
    batch = prompts.batch_size
    if model.loop == "plain":  # which writes logits
        batch = min(batch, model.rows_together)
    rows = [model.chat.render([Message("user", text)]) for text in prompts.texts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    with watching(model.network, moments.note):
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            ids, mask = model.pad([rows[index] for index in group])
            model.generate(
                ids,
                [row_seed(prompts.seed, index) for index in group],
                attention_mask=None if bool(mask.all()) else mask,
            )
            if on_progress is not None:
                on_progress(start + len(group), len(order))
