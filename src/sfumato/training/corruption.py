"""Noise: which tokens of a clean canvas are replaced, and which positions are then supervised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformNoise:
    """Each token becomes a uniform random id with probability t, drawn for each canvas.

    t = t_min + (t_max - t_min) * (1 - (1 - u)^power) with u uniform in [0, 1): `power` 1 is
    Google's flat t; above 1 high noise comes more often (the last factor's mean is
    power / (power + 1)). `stratified` spreads the u of one batch evenly, one in each n-th of
    [0, 1), in random order: each canvas's u is still uniform, and the batch's mean loss varies
    less.
    """

    t_min: float = 1e-4
    t_max: float = 1 - 1e-4
    power: float = 1.0
    stratified: bool = False

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels t [count], fp32."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.stratified:
            u = (torch.randperm(count, generator=generator) + u) / count
        shaped = 1 - (1 - u) ** self.power
        return (self.t_min + (self.t_max - self.t_min) * shaped).float()

    def corrupt(
        self, clean: Tensor, levels: Tensor, vocab_size: int, generator: torch.Generator
    ) -> Tensor:
        """Noisy canvases [N, L] of `clean` ones at `levels` [N]. There is no mask token."""
        hit = torch.rand(clean.shape, generator=generator) < levels[:, None]
        noise = torch.randint(vocab_size, clean.shape, generator=generator)
        return torch.where(hit, noise, clean)


@dataclass(frozen=True)
class Supervision:
    """Which positions the diffusion loss counts, and how much each canvas weighs.

    Google: "all" and "flat". "corrupted" counts only positions that differ from the clean canvas;
    "1/t" divides a canvas's loss by its noise level.
    """

    positions: Literal["all", "corrupted"] = "all"
    weight: Literal["flat", "1/t"] = "flat"

    def weights(self, noisy: Tensor, clean: Tensor, levels: Tensor) -> Tensor:
        """Factors [N, L] of the positions' cross entropies; their weighted sum is the loss.

        Flat weights are normalised to a mean over the counted positions; "1/t" over all positions,
        which makes "corrupted" with "1/t" the usual bound on the likelihood.
        """
        counted = torch.ones(clean.shape) if self.positions == "all" else (noisy != clean).float()
        if self.weight == "1/t":
            return counted / levels[:, None] / clean.numel()
        return counted / counted.sum().clamp(min=1.0)
