"""A look at a run in progress: held-out tasks, decoded with the plain loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfumato.diffusion.loop import generate
from sfumato.diffusion.samplers import draws_for
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.tasks.heldout import heldout
from sfumato.tasks.registry import task
from sfumato.training.config import EvalConfig
from sfumato.training.data import Data
from sfumato.training.export import generation_config

EVAL_SEED = 987_654_321


@dataclass(frozen=True)
class Score:
    """Share of exact answers and mean denoising steps of one task."""

    task: str
    accuracy: float
    steps: float


def evaluate(net: DiffusionGemma, data: Data, config: EvalConfig) -> list[Score]:
    """Decode `config.examples` held-out examples of every task, always the same ones."""
    return [_score(net, data, config, name) for name in config.tasks]


@torch.inference_mode()
def _score(net: DiffusionGemma, data: Data, config: EvalConfig, name: str) -> Score:
    settings = generation_config(data).replace(
        max_denoising_steps=config.max_denoising_steps, entropy_bound=config.entropy_bound
    )
    examples = heldout(name, config.examples, EVAL_SEED)
    right, steps = 0, 0
    for start in range(0, len(examples), config.batch):
        group = examples[start : start + config.batch]
        rows = [data.form.prompt(example.prompt) for example in group]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[data.pad] * (width - len(row)) + row for row in rows])
        real = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
        cache = net.encode(ids, attention_mask=real)
        out = generate(net, cache, settings, draws_for(EVAL_SEED, torch.device("cpu")))
        for example, tokens in zip(group, out.tokens, strict=True):
            right += task(name).check(example, data.form.tokenizer.decode(tokens))
        steps += sum(out.stats.steps)
    return Score(name, right / len(examples), steps / len(examples))
