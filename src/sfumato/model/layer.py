"""One layer of the text stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.config.model import LayerConfig, TextConfig
from sfumato.kv.cache import Fresh
from sfumato.model.attention import Attention
from sfumato.model.experts import Experts
from sfumato.model.mlp import GatedMLP
from sfumato.model.norm import RMSNorm
from sfumato.model.router import Router

if TYPE_CHECKING:
    from sfumato.model.fast_layer import FastLayer


class Layer(nn.Module):
    """Attention, then the dense MLP and the experts side by side; both passes share the weights.

    Only the factor on the layer's output differs: `layer_scalar` here is the denoiser's, the
    encoder keeps its own copy and hands it to `finish`. `fast`, if set, computes both halves.
    """

    fast: FastLayer | None = None

    def __init__(self, config: TextConfig, layer: LayerConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.kind = layer.kind
        self.self_attn = Attention(config, layer)
        self.mlp = GatedMLP(hidden, config.intermediate_size)
        self.router = Router(config)
        self.experts = Experts(config)
        self.layer_scalar = nn.Parameter(torch.ones(1))
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm_1 = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm_2 = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm_2 = RMSNorm(hidden, eps)

    def project(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Fresh]:
        """Queries, and keys and values, of the normalised input; see `Attention.project`."""
        if self.fast is not None:
            return self.fast.project(x, tables)
        return self.self_attn.project(self.input_layernorm(x), tables)

    def finish(self, x: Tensor, mixed: Tensor, scalar: Tensor) -> Tensor:
        """The layer's output [B, S, D] for its input `x` and attention's `mixed` [B, N, S, H].

        `scalar` is the pass's `layer_scalar`, shaped to broadcast over [B, S, D].
        """
        if self.fast is not None:
            return self.fast.finish(x, mixed, scalar)
        x = x + self.post_attention_layernorm(self.self_attn.output(mixed))
        out: Tensor = (x + self.post_feedforward_layernorm(self._feed_forward(x))) * scalar
        return out

    def _feed_forward(self, x: Tensor) -> Tensor:
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        rows = x.flatten(0, -2)
        weights, chosen = self.router(rows)
        mixed = self.experts(self.pre_feedforward_layernorm_2(rows), weights, chosen)
        both: Tensor = dense + self.post_feedforward_layernorm_2(mixed.view(x.shape))
        return both
