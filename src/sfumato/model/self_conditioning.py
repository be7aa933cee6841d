"""How a denoising step sees what the step before it believed."""

from __future__ import annotations

from torch import Tensor

from sfumato.model.linear import Kernel
from sfumato.model.mlp import GatedMLP
from sfumato.model.norm import RMSNorm, rms_norm


class SelfConditioning(GatedMLP):
    """A gated MLP over soft embeddings, added to the canvas embeddings and normalised.

    The closing norm has no weight and applies at the first step too, when the signal is zero;
    `closing_kernel`, if set, computes it.
    """

    closing_kernel: Kernel | None = None

    def __init__(self, hidden: int, inner: int, eps: float) -> None:
        super().__init__(hidden, inner)
        self.eps = eps
        self.pre_norm = RMSNorm(hidden, eps)

    def combine(self, embeddings: Tensor, soft_embeddings: Tensor | None) -> Tensor:
        """Canvas `embeddings` [B, L, D] with `soft_embeddings` of that shape; None for zeros.

        A zero signal passes the MLP unchanged (no biases), so the first step skips it.
        """
        if soft_embeddings is not None:
            embeddings = embeddings + self(self.pre_norm(soft_embeddings))
        if self.closing_kernel is not None:
            return self.closing_kernel(embeddings)
        return rms_norm(embeddings, None, self.eps)
