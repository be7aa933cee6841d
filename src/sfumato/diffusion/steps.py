"""One denoising step: the plain one writes its logits, the fused one never does.

Both give a step's argmax, sample and entropy at each position, and what the next step is told. They
draw different random numbers for a sample, the plain one as the reference does, so the same seed
leads them different ways; each is a fair draw from the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion.samplers import Draws, check_finite, entropy
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.ops.head import Beliefs, check_ids, head, log_probabilities, soft


class Taken(Protocol):
    """What a step found for its R rows."""

    @property
    def argmax(self) -> Tensor:
        """The likeliest ids [R, L]."""

    @property
    def sampled(self) -> Tensor:
        """One id a position [R, L], drawn from its distribution."""

    @property
    def entropies(self) -> Tensor:
        """Nats [R, L]."""

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """What `ids` [R, L, N] had in the step's distributions, fp32 of that shape.

        Raises InputError for an id that is not in the vocabulary.
        """

    def believed(self, rows: Tensor | None) -> Tensor:
        """What to tell the next step of the `rows` (a mask [R], None for all)."""


class Steps(Protocol):
    """A way to take steps."""

    def take(
        self,
        net: DiffusionGemma,
        current: Tensor,
        cache: KVCache,
        temperature: Tensor,
        believed: Tensor | None,
        draws: Draws,
    ) -> Taken:
        """A step from the canvases `current` [R, L] at one `temperature`.

        `believed` is what the step before said to tell this one, None at the first.
        """


@dataclass(frozen=True, eq=False)
class _Plain:
    argmax: Tensor
    sampled: Tensor
    entropies: Tensor
    logits: Tensor  # fp32, divided by the temperature
    dtype: torch.dtype  # the network's

    def log_probabilities(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.logits.shape[-1])
        return torch.log_softmax(self.logits, dim=-1).gather(-1, ids)

    def believed(self, rows: Tensor | None) -> Tensor:
        return (self.logits if rows is None else self.logits[rows]).to(self.dtype)


@dataclass(frozen=True)
class PlainSteps:
    """Logits [R, L, V] written out, one `multinomial` over all positions: the reference's step."""

    def take(
        self,
        net: DiffusionGemma,
        current: Tensor,
        cache: KVCache,
        temperature: Tensor,
        believed: Tensor | None,
        draws: Draws,
    ) -> Taken:
        """See `Steps`; what is told are the logits, divided by the temperature."""
        logits = net.denoise(current, cache, believed) / temperature
        sampled = draws.sample(torch.softmax(logits, dim=-1))
        return _Plain(logits.argmax(dim=-1), sampled, entropy(logits), logits, net.dtype)


PLAIN = PlainSteps()


@dataclass(frozen=True, eq=False)
class _Fused:
    net: DiffusionGemma
    hidden: Tensor  # [R, L, D]
    temperatures: Tensor  # [R * L]
    beliefs: Beliefs

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.view(self.hidden.shape[:2])

    @property
    def argmax(self) -> Tensor:
        return self._shaped(self.beliefs.argmax)

    @property
    def sampled(self) -> Tensor:
        assert self.beliefs.sample is not None
        return self._shaped(self.beliefs.sample)

    @property
    def entropies(self) -> Tensor:
        return self._shaped(self.beliefs.entropy)

    def log_probabilities(self, ids: Tensor) -> Tensor:
        net = self.net
        found = log_probabilities(
            self.hidden.flatten(0, 1),
            net.table,
            net.config.text.final_logit_softcapping,
            self.temperatures,
            self.beliefs,
            ids.flatten(0, 1),
            net.kernels,
        )
        return found.view(ids.shape)

    def believed(self, rows: Tensor | None) -> Tensor:
        hidden, temperatures, beliefs = self.hidden, self.temperatures, self.beliefs
        if rows is not None:
            flat = rows.repeat_interleave(hidden.shape[1])
            hidden, temperatures, beliefs = hidden[rows], temperatures[flat], beliefs.only(flat)
        net = self.net
        out = soft(
            hidden.flatten(0, 1),
            net.table,
            net.config.text.final_logit_softcapping,
            temperatures,
            beliefs,
            net.embed_factor,
            net.kernels,
        )
        return out.view(hidden.shape)


@dataclass(frozen=True)
class FusedSteps:
    """One pass over the vocabulary and one uniform number a position; see `sfumato.ops.head`.

    Kernels compute it where the network has them, else the reference of `sfumato.ops`.
    """

    def take(
        self,
        net: DiffusionGemma,
        current: Tensor,
        cache: KVCache,
        temperature: Tensor,
        believed: Tensor | None,
        draws: Draws,
    ) -> Taken:
        """See `Steps`; what is told are soft embeddings [R, L, D]."""
        hidden = net.denoise_hidden(current, cache, believed)
        temperatures = temperature.float().expand(current.numel()).contiguous()
        beliefs = head(
            hidden.flatten(0, 1),
            net.table,
            net.config.text.final_logit_softcapping,
            temperatures,
            draws.uniforms(*current.shape).flatten(),
            net.kernels,
        )
        check_finite(beliefs.entropy)
        return _Fused(net, hidden, temperatures, beliefs)
