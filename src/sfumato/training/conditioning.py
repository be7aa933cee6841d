"""What a share of the canvases knows before its training pass: beliefs from earlier passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.samplers import EntropyBound, SharedDraws, entropy
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.training.losses import Batch, Beliefs, Passes, first_pass


@dataclass(frozen=True)
class SelfConditioning:
    """A share of the canvases sees the logits of a first pass without gradient, the rest zeros.

    The logits are divided by a temperature uniform in [t_min, t_max], as decoding's schedule would
    have it at a random step. The share is met exactly where it can be: canvases of a row are
    exchangeable, so it is the first ones of each row, or the first rows where a row has too few;
    where rows do not come out even, whether one more is taken is drawn so that the mean is right.

    With `rollout_steps` > 0 and probability `rollout_probability`, the first pass becomes 1 to
    `rollout_steps` denoising steps (sample, accept within `entropy_bound`, renoise): training then
    sees canvases as decoding makes them.
    """

    probability: float = 0.5
    t_min: float = 0.4
    t_max: float = 0.8
    rollout_steps: int = 0
    rollout_probability: float = 1.0
    entropy_bound: float = 0.1

    def grid(self, rows: int, canvases: int, generator: torch.Generator) -> tuple[int, int]:
        """(R, M): the first M canvases of the first R rows are informed; (0, 0) for none."""
        wanted = self.probability * rows
        if (share := wanted * canvases / rows).is_integer():
            return (rows, int(share)) if share else (0, 0)
        chosen = int(wanted)
        if chosen < wanted:
            chosen += float(torch.rand((), generator=generator)) < wanted - chosen
        return (chosen, canvases) if chosen else (0, 0)

    def beliefs(
        self,
        net: DiffusionGemma,
        passes: Passes,
        batch: Batch,
        noisy: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Beliefs | None]:
        """The canvases to train on [B * C, L] and what some of them are told.

        `noisy` itself comes back unless a rollout has moved some of its canvases on.
        """
        canvases = noisy.shape[0] // batch.rows
        rows, chosen = self.grid(batch.rows, canvases, generator)
        if rows == 0:
            return noisy, None
        view = noisy.view(batch.rows, canvases, -1)
        current = view[:rows, :chosen].flatten(0, 1)
        steps, beliefs = self._steps(generator), None
        for step in range(max(1, steps)):
            logits = first_pass(net, passes, batch, current, (rows, chosen), beliefs)
            spread = torch.rand(len(current), generator=generator)
            logits = logits / (self.t_min + (self.t_max - self.t_min) * spread)[:, None, None]
            beliefs = Beliefs(rows, chosen, logits)
            if step < steps:
                current = self._renoise(current, logits, generator)
        if steps:
            view = view.clone()
            view[:rows, :chosen] = current.view(rows, chosen, -1)
        return view.flatten(0, 1), beliefs

    def _steps(self, generator: torch.Generator) -> int:
        """Denoising steps to take; 0 for the plain first pass."""
        if not self.rollout_steps:
            return 0
        chance = float(torch.rand((), generator=generator))
        steps = int(torch.randint(1, self.rollout_steps + 1, (), generator=generator))
        return steps if chance < self.rollout_probability else 0

    def _renoise(self, current: Tensor, logits: Tensor, generator: torch.Generator) -> Tensor:
        draws = SharedDraws(generator)
        rows, length = current.shape
        sampled = draws.sample(torch.softmax(logits, dim=-1))
        fresh = draws.canvas(rows, length, logits.shape[-1])
        return EntropyBound(self.entropy_bound).accept(entropy(logits), sampled, fresh)[1]
