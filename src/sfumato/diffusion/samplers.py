"""Which sampled tokens a denoising step keeps, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats [...] of the distribution that `logits` [..., V] stand for.

    Written in the order of operations of `torch.distributions.Categorical`, which the reference
    uses: the accepted set hangs on the last bit when two positions tie.
    """
    normalised = logits - logits.logsumexp(dim=-1, keepdim=True)
    floor = torch.finfo(logits.dtype).min
    return -(normalised.clamp(min=floor) * torch.softmax(normalised, dim=-1)).sum(-1)


@dataclass(frozen=True)
class EntropyBound:
    """Accept the surest positions while their joint uncertainty stays within `bound` nats.

    With entropies sorted ascending, position k is accepted while the sum of those before it is at
    most `bound`: an upper bound on the mutual information lost by sampling them independently
    (arXiv 2505.24857). At least one position is accepted at every step.
    """

    bound: float

    def accept(self, entropies: Tensor) -> Tensor:
        """Mask [B, L], true on accepted positions, for `entropies` [B, L]."""
        ordered, places = torch.sort(entropies, dim=-1)
        chosen = torch.cumsum(ordered, dim=-1) - ordered <= self.bound
        return torch.zeros_like(chosen).scatter(-1, places, chosen)


class Draws(Protocol):
    """The random numbers of a decoding, in the order in which the loop asks for them."""

    def canvas(self, rows: int, length: int, vocab_size: int) -> Tensor:
        """Uniform random ids [rows, length]."""

    def sample(self, probabilities: Tensor) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""


@dataclass(frozen=True)
class SharedDraws:
    """One generator for the whole batch, as the reference draws."""

    generator: torch.Generator

    def canvas(self, rows: int, length: int, vocab_size: int) -> Tensor:
        """Uniform random ids [rows, length]."""
        return torch.randint(
            vocab_size,
            (rows, length),
            generator=self.generator,
            device=self.generator.device,
        )

    def sample(self, probabilities: Tensor) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""
        flat = probabilities.flatten(0, 1)
        return torch.multinomial(flat, 1, generator=self.generator).view(probabilities.shape[:2])


@dataclass(frozen=True)
class RowDraws:
    """One generator a row, so that each row gets what it would get alone."""

    generators: tuple[torch.Generator, ...]

    def canvas(self, rows: int, length: int, vocab_size: int) -> Tensor:
        """Uniform random ids [rows, length]."""
        assert rows == len(self.generators)
        return torch.cat([SharedDraws(g).canvas(1, length, vocab_size) for g in self.generators])

    def sample(self, probabilities: Tensor) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""
        pairs = zip(self.generators, probabilities, strict=True)
        return torch.cat([SharedDraws(g).sample(row[None]) for g, row in pairs])


def draws_for(seed: int | Sequence[int], device: torch.device) -> Draws:
    """`SharedDraws` for one seed, `RowDraws` for a sequence with one seed a row."""
    if isinstance(seed, int):
        return SharedDraws(torch.Generator(device).manual_seed(seed))
    return RowDraws(tuple(torch.Generator(device).manual_seed(one) for one in seed))
