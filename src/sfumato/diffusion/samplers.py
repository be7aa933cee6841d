"""Which sampled tokens a denoising step keeps, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.errors import CheckpointError


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


def check_finite(values: Tensor) -> None:
    """Raise CheckpointError if the network's output holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            "the network computes NaN or infinity",
            hint="the weights are damaged, or float16 overflows: try float32 or bfloat16",
        )


class Draws(Protocol):
    """The random numbers of a decoding, in the order in which the loop asks for them.

    `finished` [B] marks rows that will not use what is drawn for them.
    """

    @property
    def apart(self) -> bool:
        """Whether each row draws for itself, so that nobody asks what finished rows compute."""

    def canvas(
        self, rows: int, length: int, vocab_size: int, finished: Tensor | None = None
    ) -> Tensor:
        """Uniform random ids [rows, length]."""

    def sample(self, probabilities: Tensor, finished: Tensor | None = None) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""


@dataclass(frozen=True)
class SharedDraws:
    """One generator for the whole batch, finished rows included, as the reference draws."""

    generator: torch.Generator

    @property
    def apart(self) -> bool:
        """False: the reference computes all rows to the end, and the last bit may show it."""
        return False

    def canvas(
        self, rows: int, length: int, vocab_size: int, finished: Tensor | None = None
    ) -> Tensor:
        """Uniform random ids [rows, length]."""
        del finished  # all rows share the stream: leaving one out would shift the others
        return torch.randint(
            vocab_size,
            (rows, length),
            generator=self.generator,
            device=self.generator.device,
        )

    def sample(self, probabilities: Tensor, finished: Tensor | None = None) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""
        del finished
        flat = probabilities.flatten(0, 1)
        try:
            drawn = torch.multinomial(flat, 1, generator=self.generator)
        except RuntimeError:
            check_finite(flat)
            raise
        return drawn.view(probabilities.shape[:2])


@dataclass(frozen=True)
class RowDraws:
    """One generator a row, so that each row gets what it would get alone.

    A finished row draws nothing and gets zeros: alone it would be at its next canvas already, and
    its generator must be where it would be then.
    """

    generators: tuple[torch.Generator, ...]

    @property
    def apart(self) -> bool:
        """True."""
        return True

    def canvas(
        self, rows: int, length: int, vocab_size: int, finished: Tensor | None = None
    ) -> Tensor:
        """Uniform random ids [rows, length]."""
        device = self.generators[0].device
        out = torch.zeros(rows, length, dtype=torch.long, device=device)
        for row, generator in self._drawing(rows, finished):
            out[row] = SharedDraws(generator).canvas(1, length, vocab_size)[0]
        return out

    def sample(self, probabilities: Tensor, finished: Tensor | None = None) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""
        rows, length = probabilities.shape[:2]
        out = torch.zeros(rows, length, dtype=torch.long, device=probabilities.device)
        for row, generator in self._drawing(rows, finished):
            out[row] = SharedDraws(generator).sample(probabilities[row, None])[0]
        return out

    def _drawing(self, rows: int, finished: Tensor | None) -> Iterator[tuple[int, torch.Generator]]:
        assert rows == len(self.generators)
        done = [False] * rows if finished is None else finished.tolist()
        for row, generator in enumerate(self.generators):
            if not done[row]:
                yield row, generator


def draws_for(seed: int | Sequence[int], device: torch.device) -> Draws:
    """`SharedDraws` for one seed, `RowDraws` for a sequence with one seed a row."""
    if isinstance(seed, int):
        return SharedDraws(torch.Generator(device).manual_seed(seed))
    return RowDraws(tuple(torch.Generator(device).manual_seed(one) for one in seed))
