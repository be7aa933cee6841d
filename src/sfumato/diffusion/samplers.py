"""Which sampled tokens a denoising step keeps, and where its random numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.ops.accept import accept
from sfumato.ops.kernels import Kernels


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

    def accept(
        self, entropies: Tensor, sampled: Tensor, fresh: Tensor, kernels: Kernels | None = None
    ) -> tuple[Tensor, Tensor]:
        """Which positions [B, L] are accepted, and the canvas: `sampled` there, else `fresh`."""
        return accept(entropies, sampled, fresh, self.bound, kernels)


def check_finite(values: Tensor) -> None:
    """Raise CheckpointError if the network's output holds NaN or infinity."""
    # One sum for `isfinite(values).all()`: finite numbers of fp32 have a finite sum in fp64.
    if not math.isfinite(values.sum(dtype=torch.float64).item()):
        raise CheckpointError(
            "the network computes NaN or infinity",
            hint="the weights are damaged, or float16 overflows: try float32 or bfloat16",
        )


class Draws(Protocol):
    """The random numbers of a decoding, in the order in which the loop asks for them."""

    @property
    def apart(self) -> bool:
        """Whether each row draws for itself, so that finished rows can leave the batch."""

    def only(self, rows: Tensor) -> Draws:
        """The draws of the `rows` (a mask [B]) alone, where rows draw apart."""

    def canvas(self, rows: int, length: int, vocab_size: int) -> Tensor:
        """Uniform random ids [rows, length]."""

    def sample(self, probabilities: Tensor) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""

    def uniforms(self, rows: int, length: int) -> Tensor:
        """Uniform numbers in [0, 1), fp64 [rows, length]."""


@dataclass(frozen=True)
class SharedDraws:
    """One generator for the whole batch, finished rows included, as the reference draws."""

    generator: torch.Generator

    @property
    def apart(self) -> bool:
        """False: leaving a row out would shift what the others draw."""
        return False

    def only(self, rows: Tensor) -> SharedDraws:
        """These draws, if all of the `rows` stay."""
        assert bool(rows.all())
        return self

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
        try:
            drawn = torch.multinomial(flat, 1, generator=self.generator)
        except RuntimeError:
            check_finite(flat)
            raise
        return drawn.view(probabilities.shape[:2])

    def uniforms(self, rows: int, length: int) -> Tensor:
        """Uniform numbers in [0, 1), fp64 [rows, length]."""
        return torch.rand(
            (rows, length),
            generator=self.generator,
            device=self.generator.device,
            dtype=torch.float64,
        )


@dataclass(frozen=True)
class RowDraws:
    """One generator a row, so that each row gets what it would get alone.

    A row that has finished its canvas must draw nothing until the next one: its generator is then
    where it would be alone. `only` leaves it out.
    """

    generators: tuple[torch.Generator, ...]

    @property
    def apart(self) -> bool:
        """True."""
        return True

    def only(self, rows: Tensor) -> RowDraws:
        """The draws of the `rows` (a mask [B]) alone."""
        pairs = zip(self.generators, rows.tolist(), strict=True)
        return RowDraws(tuple(generator for generator, stays in pairs if stays))

    def canvas(self, rows: int, length: int, vocab_size: int) -> Tensor:
        """Uniform random ids [rows, length]."""
        assert rows == len(self.generators)
        each = [SharedDraws(one).canvas(1, length, vocab_size) for one in self.generators]
        return torch.cat(each)

    def sample(self, probabilities: Tensor) -> Tensor:
        """One id a position [B, L] for `probabilities` [B, L, V]."""
        rows = zip(self.generators, probabilities, strict=True)
        return torch.cat([SharedDraws(one).sample(row[None]) for one, row in rows])

    def uniforms(self, rows: int, length: int) -> Tensor:
        """Uniform numbers in [0, 1), fp64 [rows, length]."""
        assert rows == len(self.generators)
        return torch.cat([SharedDraws(one).uniforms(1, length) for one in self.generators])


def draws_for(seed: int | Sequence[int], device: torch.device) -> Draws:
    """`SharedDraws` for one seed, `RowDraws` for a sequence with one seed a row."""
    if isinstance(seed, int):
        return SharedDraws(torch.Generator(device).manual_seed(seed))
    return RowDraws(tuple(torch.Generator(device).manual_seed(one) for one in seed))
